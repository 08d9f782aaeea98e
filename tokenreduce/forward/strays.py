"""Why a layer finds no run to take part in: what happened, in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.ops.modes import backward_pass
from tokenreduce.ops.tracing import is_left_free, to_old_onnx

UNDO = "or call tokenreduce.unpatch(model)"


def why_no_run(reduction: Reduction, layer: int, here: Sequence[Run], elsewhere: Sequence[Run]) -> str:
    """The sentence for a layer that was called where no run waits for it.

    Args:
        here, elsewhere: the runs of this thread and of all others.
    """
    if backward_pass() != -1:
        return (
            f"block {layer} of a reduced model was called again in the backward pass, outside a forward pass: gradient "
            f"checkpointing does that; switch it off (set_grad_checkpointing(False)) {UNDO}"
        )
    mine = [run for run in here if run.reduction is reduction and run.given is not None]
    if mine and mine[-1].next_layer > layer:
        return (
            f"block {layer} of a reduced model was called again after block {mine[-1].next_layer - 1} in one forward: "
            f"a block was repeated, or two inputs go through the blocks in turn; run one after the other {UNDO}"
        )
    if mine:
        ran, skipped = mine[-1].next_layer - 1, list(range(mine[-1].next_layer, layer))
        return (
            f"block {layer} of a reduced model was called right after block {ran}: block"
            f"{'s' if len(skipped) > 1 else ''} {', '.join(map(str, skipped))} did not run (skipped, deleted or "
            f"replaced since the model was patched); patch again {UNDO}"
        )
    if any(run.reduction is reduction and run.next_layer == layer for run in elsewhere):
        return (
            f"block {layer} of a reduced model was called outside a forward pass: block {layer - 1} ran in another "
            f"thread; run all blocks of a forward in one thread {UNDO}"
        )
    return (
        f"block {layer} of a reduced model was called outside a forward pass: no block before it has run in this "
        f"thread since the last forward ended; start with block 0 {UNDO}"
    )


def two_at_once(layer: int) -> str:
    """The sentence for a layer that was given what another forward had left."""
    return (
        f"block {layer} of a reduced model was given what an earlier forward left, which another one has replaced "
        f"since: two inputs go through the blocks in turn; run one after the other {UNDO}"
    )


def refuse_proxy(x: object) -> None:
    """Raise for what `torch.fx` puts in the place of tensors, which has no shape to count tokens by."""
    if type(x).__name__ == "Proxy":
        raise InvalidValueError(
            "torch.fx cannot trace a reduced model (symbolic_trace, create_feature_extractor): its counts follow from "
            "the shape of the input, which fx does not know; use torch.export.export, or call "
            "tokenreduce.unpatch(model) first"
        )


def refuse_old_exporter() -> None:
    """Raise where the exporter to ONNX that traces would fail at the first operator that it does not know."""
    if to_old_onnx():
        raise InvalidValueError(
            "torch.onnx.export(dynamo=False) cannot export a reduced model, whose sorting and merging it does not "
            f"know; export with dynamo=True, {UNDO}"
        )


def refuse_free(*sizes: int) -> None:
    """Raise where an export leaves sizes free that decide the number of tokens."""
    if any(is_left_free(size) for size in sizes):
        raise InvalidValueError(
            "a reduced model cannot be exported with free height, width or number of tokens: its counts are plain "
            "numbers that follow from them; leave only the batch free (dynamic_shapes={0: Dim('batch')}), export once "
            f"for each size, {UNDO}"
        )


def is_same(given: Tensor | None, x: Tensor) -> bool:
    """Whether `x` is the tensor `given`, or the same memory as another shape."""
    if given is None or given.numel() != x.numel():
        return False
    try:
        return given.untyped_storage()._cdata == x.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # of a transform, which has no memory of its own
        return given is x
