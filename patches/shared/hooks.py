"""Forward hooks that show a reducer what a layer computes. They do nothing in layers that do not reduce.

Each is a function of its own at module level: only those are the same objects in copies and pickles of a model, by
which `remove_hooks` knows them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.forward.marks import ATTRIBUTE, mark, unmark
from tokenreduce.forward.noted import note_grid, note_video
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import capturing
from tokenreduce.forward.strays import refuse_proxy
from tokenreduce.reducers.entries import ATTENTION


def split_heads(output: Tensor, heads: int) -> Tensor:
    """`(B, H, N, d)` from a projection's `(B, N, H d)`; what has heads already stays."""
    return output if output.ndim == 4 else output.unflatten(-1, (heads, -1)).transpose(1, 2)


def _run_of(module: Any) -> Run | None:
    """The run whose current layer reduces, of the patch that the module belongs to; None also where another tool has
    carried the hook over to a module of its own."""
    mark = getattr(module, ATTRIBUTE, None)
    return None if mark is None else capturing(mark.reduction)


def _capture(module: Any, name: str, output: Tensor) -> None:
    run = _run_of(module)
    if run is not None:
        run.shown.add(name, split_heads(output, run.reduction.geometry.heads))


def _capture_part(module: Any, name: str, output: Tensor) -> None:
    """Keep a part of what a fused projection gives: queries, keys and values, of tokens or of a map."""
    part = ("queries", "keys", "values").index(name)
    _capture(module, name, output.flatten(1, -2).chunk(3, -1)[part])


def capture_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture(module, "keys", output)


def capture_queries(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture(module, "queries", output)


def capture_values(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture(module, "values", output)


def capture_mean_keys(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    run = _run_of(module)
    if run is not None:
        run.shown.add_mean_keys(split_heads(output, run.reduction.geometry.heads))


def capture_fused_queries(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture_part(module, "queries", output)


def capture_fused_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture_part(module, "keys", output)


def capture_fused_values(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture_part(module, "values", output)


def capture_fused_mean_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    capture_mean_keys(module, args, output.flatten(1, -2).chunk(3, -1)[1])


def _unfolded(module: Any, output: Tensor) -> Tensor:
    """`(B, H, N, d)` of `(B H, N, d)`."""
    run = _run_of(module)
    return output if run is None else output.unflatten(0, (-1, run.reduction.geometry.heads))


def capture_folded_queries(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture(module, "queries", _unfolded(module, output))


def capture_folded_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    _capture(module, "keys", _unfolded(module, output))


def capture_folded_mean_keys(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    capture_mean_keys(module, args, _unfolded(module, output))


def capture_scan_output(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """What enters the output projection of a state-space mixer."""
    run = _run_of(module)
    if run is not None:
        run.shown.add("scan_output", args[0])


def capture_time_step(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """The steps of one direction, from what their projection gives."""
    run = _run_of(module)
    if run is not None:
        run.shown.add_time_step(F.softplus(output.float()))


def capture_biased_time_step(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """The same where the bias of the projection counts twice."""
    run = _run_of(module)
    if run is not None:
        run.shown.add_time_step(F.softplus((output + module.bias).float()))


def _noted_by(module: Any, x: Tensor) -> Reduction | None:
    """The patch that `module` notes something of `x` for."""
    refuse_proxy(x)
    mark = getattr(module, ATTRIBUTE, None)
    return None if mark is None else mark.reduction


def capture_grid(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """The grid of a patch embedding's convolution, `(H, W)` or `(T, H, W)`."""
    reduction = _noted_by(module, output)
    if reduction is not None:
        note_grid(reduction, tuple(output.shape[2:]))


def capture_video(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """The video from which the convolution of a patch embedding makes tubelets."""
    reduction = _noted_by(module, args[0])
    if reduction is not None:
        note_video(reduction, args[0], module.kernel_size)


def capture_dynamic_grid(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """The grid of a timm patch embedding."""
    reduction = _noted_by(module, args[0])
    if reduction is not None:
        note_grid(reduction, tuple(module.dynamic_feat_size(tuple(args[0].shape[-2:]))))


HOOKS = {
    "mean_keys": capture_mean_keys,
    "keys": capture_keys,
    "queries": capture_queries,
    "values": capture_values,
    "fused_queries": capture_fused_queries,
    "fused_keys": capture_fused_keys,
    "fused_values": capture_fused_values,
    "fused_mean_keys": capture_fused_mean_keys,
    "folded_queries": capture_folded_queries,
    "folded_keys": capture_folded_keys,
    "folded_mean_keys": capture_folded_mean_keys,
    "scan_output": capture_scan_output,
    "time_step": capture_time_step,
    "biased_time_step": capture_biased_time_step,
    "grid": capture_grid,
    "video": capture_video,
    "dynamic_grid": capture_dynamic_grid,
}


def captured_by_hooks(reduction: Reduction, missing: dict[str, str]) -> frozenset[str]:
    """What the method reads of the model, with the queries and keys that attention entries are computed from."""
    wanted = reduction.reducer.read_between() - missing.keys()
    return wanted | {"queries", "keys"} if wanted & ATTENTION else wanted


def show_heads(run: Run, queries: Tensor, keys: Tensor, values: Tensor) -> None:
    """Show what the method reads of the current layer, `(B, H, N, d)` each, where no module puts it out for a hook."""
    wanted = captured_by_hooks(run.reduction, {})
    for name, heads in (("queries", queries), ("keys", keys), ("values", values)):
        if name in wanted:
            run.shown.add(name, heads)
    if "mean_keys" in wanted:
        run.shown.add_mean_keys(keys)


def add_hook(module: Any, reduction: Reduction, name: str) -> None:
    mark(module, reduction)
    if HOOKS[name] not in module._forward_hooks.values():
        module.register_forward_hook(HOOKS[name])


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook of ours is on `module`."""
    return any(hook in HOOKS.values() for hook in module._forward_hooks.values())


def remove_hooks(module: nn.Module) -> None:
    """Take our hooks off `module`, and nobody else's."""
    unmark(module)
    for key in [key for key, hook in module._forward_hooks.items() if hook in HOOKS.values()]:
        del module._forward_hooks[key]
