"""`patch`, `unpatch`, `reduced` and what can be asked of a model: `compatible`, `report`, `save_patch`,
`load_patch`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.finding import around, candidates, find_backbone, need_module, patch_of, reduction_of
from tokenreduce.fitting import HEADS, auxiliary_heads, check_layers, misfit
from tokenreduce.recording import last_record
from tokenreduce.reduction import AuxiliaryHeads, Reduction
from tokenreduce.registry import Reducer, create, lookup, methods
from tokenreduce.reporting import Report
from tokenreduce.restoring import MODES
from tokenreduce.schedule import Schedule

if TYPE_CHECKING:
    from tokenreduce.patches.base import Adapter

Model = TypeVar("Model", bound=nn.Module)
FORMAT = 1


def patch(
    model: Model,
    method: str,
    *,
    ratio: float | None = None,
    r: int | Sequence[int] | None = None,
    flops: float | None = None,
    schedule: Schedule | None = None,
    layers: Sequence[int] | None = None,
    restore: bool | str = "auto",
    prop_attn: bool | str = "auto",
    **options: Any,
) -> Model:
    """Make `model` process fewer tokens, in place, without training; returns the model. Patching again replaces the
    patch.

    Args:
        model: a vision transformer of a known family, or a module that holds exactly one.
        method: a name from `methods()`.
        ratio: fraction of the image tokens that is gone after the last reducing layer, in [0, 1).
        r: image tokens removed in every block, an int or a list with one int a block.
        flops: fraction of the unpatched multiply-adds that is left, the reducer's own work included, in (0, 1].
        schedule: a `Schedule`, which overrides the method's own shape. Exactly one of these four is needed; adaptive
            methods alone run without one too: then their threshold decides, and counts follow the data.
        layers: the 0-based layers that reduce, instead of the method's own.
        restore: "auto" gives all tokens back where an output is a map (`forward_intermediates`, pooling heads) and
            leaves token outputs reduced; True always gives them back, False never does (a pooling head then weighs
            each token the same, however many it stands for). A name of `restoring.MODES` is "auto" in that way:
            "copy", "soft", "freeze" or "delta".
        prop_attn: "auto" adds the log of its size to the logits of each key, except for weights known to suffer from
            it.
        options: the method's own, see `describe(method)`.

    Raises:
        ValueError, TypeError: a value, option, method, budget or model that does not fit; the model is left as it was.
    """
    name, backbone, adapter = find_backbone(model)
    reducer = create(method, options)
    check_restore(reducer, restore)
    check_mode("prop_attn", prop_attn)
    outer = around(model, name)
    heads = auxiliary_heads(outer) if HEADS in reducer.required() else None
    if heads is not None and layers is None and schedule is None and (r is None or isinstance(r, int)):
        layers = heads.auxiliary_layers
    made = _make_schedule(reducer, ratio, r, flops, schedule, layers).restore_after(*reducer.rebuilt_after())
    reduction = _prepare(backbone, adapter, outer, reducer, made, restore, prop_attn, heads)
    if patch_of(backbone) is not None:
        adapter.remove(backbone)
    adapter.install(backbone, reduction)
    backbone._tokenreduce = reduction  # type: ignore[assignment]
    return model


def unpatch(model: Model) -> Model:
    """Undo `patch`, in place: the same classes, hooks and forwards as before; returns the model, also if it is not
    patched."""
    for _, backbone, adapter in candidates(need_module(model)):
        if patch_of(backbone) is not None:
            adapter.remove(backbone)
            del backbone._tokenreduce
    return model


@contextmanager
def reduced(model: Model, method: str, **arguments: Any) -> Iterator[Model]:
    """`patch` for the length of a `with` block; an earlier patch comes back afterwards. Takes the arguments of
    `patch`."""
    _, backbone, adapter = find_backbone(model)
    before = vars(backbone).get("_tokenreduce")
    patch(model, method, **arguments)
    try:
        yield model
    finally:
        unpatch(model)
        if before is not None:
            adapter.install(backbone, before)
            backbone._tokenreduce = before


def report(model: nn.Module) -> Report:
    """What the patch does: tokens left in each layer, and the maps and sizes of the last forward.

    Raises: ValueError if the model is not patched.
    """
    reduction = reduction_of(model)
    return Report(reduction, last_record(reduction))


class Compatibility(list[str]):
    """The methods that fit a model; `refused` maps every other method to the reason."""

    def __init__(self, fitting: list[str], refused: dict[str, str]) -> None:
        super().__init__(fitting)
        self.refused = refused

    def __repr__(self) -> str:
        lines = [f"fits: {', '.join(self) or 'nothing'}"] + [
            f"  not {name}: {why}" for name, why in self.refused.items()
        ]
        return "\n".join(lines)


def compatible(model: nn.Module) -> Compatibility:
    """The methods that fit `model`, as a list; its attribute `refused` says why the others do not.

    Raises: ValueError if no family knows the model, or several parts of it are backbones.
    """
    holder, backbone, adapter = find_backbone(model)
    outer = around(model, holder)
    reasons = {name: misfit(lookup(name)(), backbone, adapter, outer) for name in methods()}
    return Compatibility([n for n, why in reasons.items() if not why], {n: why for n, why in reasons.items() if why})


def save_patch(model: nn.Module, path: str | Path) -> None:
    """Write the model's patch (method, options, schedule, modes) as JSON; weights are not part of it."""
    data = {"tokenreduce": FORMAT} | reduction_of(model).to_json()
    Path(path).write_text(json.dumps(data, indent=2) + "\n")


def load_patch(model: Model, path: str | Path) -> Model:
    """Patch `model`, in place, as `save_patch` recorded it; returns the model.

    Raises: ValueError for a file that is not such a record or does not fit the model.
    """
    try:
        data = json.loads(Path(path).read_text())
        if data["tokenreduce"] != FORMAT:
            raise InvalidValueError(f"{path} has patch format {data['tokenreduce']!r}; this version reads {FORMAT}")
        schedule = Schedule.from_json(data["schedule"])
        arguments = {"restore": data["restore"], "prop_attn": data["prop_attn"], **data["options"]}
        method = data["method"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidValueError(f"{path} is not a patch written by save_patch ({error!r})") from None
    return patch(model, method, schedule=schedule, **arguments)


def check_mode(name: str, value: object) -> None:
    if not (isinstance(value, bool) or value == "auto"):
        raise InvalidValueError(f'{name} is {value!r}; valid: True, False, "auto"')


def check_restore(reducer: Reducer, value: object) -> None:
    if not (isinstance(value, bool) or value == "auto" or value in reducer.modes):
        names = ", ".join(f'"{mode}"' for mode in ("auto", *reducer.modes))
        reason = f" ({reducer.name} has no such way)" if value in MODES else ""
        raise InvalidValueError(f"restore is {value!r}; valid: True, False, {names}{reason}")


def _make_schedule(
    reducer: Reducer,
    ratio: float | None,
    r: int | Sequence[int] | None,
    flops: float | None,
    schedule: Schedule | None,
    layers: Sequence[int] | None,
) -> Schedule:
    given = {"ratio": ratio, "r": r, "flops": flops, "schedule": schedule}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if not named and reducer.adaptive:
        return Schedule.adaptive(layers)
    if len(named) != 1:
        what = " and ".join(named) if named else "no budget"
        raise InvalidTypeError(f"got {what}; give exactly one of ratio, r, flops and schedule, for example flops=0.6")
    if schedule is not None:
        if not isinstance(schedule, Schedule):
            raise InvalidTypeError(
                f"schedule is {schedule!r}; it must be a tokenreduce.Schedule, such as Schedule.keep({{3: 0.7}})"
            )
        if layers is not None:
            raise InvalidTypeError("layers and schedule exclude each other: the schedule already names its layers")
        if schedule.rule == "adaptive" and not reducer.adaptive:
            raise InvalidTypeError(f"{reducer.name} cannot decide counts itself; give a budget, for example flops=0.6")
        return schedule
    if r is not None:
        return Schedule.remove(r, layers)
    return Schedule.budget(reducer.shape, ratio, flops, layers)


def _prepare(
    backbone: nn.Module,
    adapter: Adapter,
    outer: Sequence[nn.Module],
    reducer: Reducer,
    schedule: Schedule,
    restore: bool | str,
    prop_attn: bool | str,
    heads: AuxiliaryHeads | None,
) -> Reduction:
    """Check everything that can fail before the model is touched."""
    reason = misfit(reducer, backbone, adapter, outer)
    if reason:
        fitting = ", ".join(n for n in methods() if not misfit(lookup(n)(), backbone, adapter, outer)) or "none"
        raise InvalidValueError(
            f"{reducer.name} cannot run on this {type(backbone).__name__}: {reason}; methods that fit: {fitting}"
        )
    geometry = adapter.geometry(backbone)
    schedule.check_layers(geometry.depth, geometry.whole)
    if restore is False and adapter.needs_all(backbone, outer):
        raise InvalidValueError(
            f"restore=False leaves no map, and what follows the layers of this {type(backbone).__name__} takes all "
            'tokens; leave it out, or give restore="auto" or True'
        )
    chosen = None if restore == "auto" or isinstance(restore, bool) else restore
    restoring = chosen or reducer.restoring
    # Copies, weighed by how many there are, are what pooling reduced tokens by their sizes gives.
    reads_maps = bool(chosen or outer or adapter.needs_maps)
    reduction = Reduction(
        reducer,
        schedule,
        geometry,
        adapter.name,
        restore=restore if isinstance(restore, bool) else adapter.restores(backbone, outer),
        restore_taps=restore is not False,
        restoring=restoring,
        restoring_end=restoring if reads_maps else reducer.pooling,
        prop_attn=adapter.prop_attn(backbone) if prop_attn == "auto" else bool(prop_attn),
        requested={"restore": restore, "prop_attn": prop_attn},
        heads=heads,
    )
    check_layers(reduction)
    return reduction
