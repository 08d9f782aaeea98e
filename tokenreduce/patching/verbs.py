"""`patch`, `unpatch`, `reduced`, and what can be asked of a model: `compatible`, `report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from tokenreduce.budget.geometry import AuxiliaryHeads
from tokenreduce.budget.schedule import Schedule
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.owner import Owner
from tokenreduce.forward.records import last_record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.stack import forget_everywhere
from tokenreduce.patches.shared.adapter import Adapter
from tokenreduce.patches.shared.weights import wrapped_costs
from tokenreduce.patching.finding import (
    around,
    can_keep,
    candidates,
    find_backbone,
    find_language,
    is_patched,
    language_reduction_of,
    need_module,
    reduction_of,
)
from tokenreduce.patching.fitting import auxiliary_heads, check_layers, check_scan, misfit, reads_heads
from tokenreduce.patching.language import need_keep, prepare_language
from tokenreduce.patching.language_costs import language_costs
from tokenreduce.patching.language_report import LanguageReport
from tokenreduce.patching.outputs import check_restore, decide_restoring, warn_of_language
from tokenreduce.patching.recorded import read_patch
from tokenreduce.patching.reporting import Report
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.registry import create, lookup, methods

Model = TypeVar("Model", bound=nn.Module)


def patch(
    model: Model,
    method: str | None = None,
    *,
    ratio: float | None = None,
    r: int | Sequence[int] | None = None,
    flops: float | None = None,
    keep: float | int | Mapping[int, float | int] | None = None,
    schedule: Schedule | str | Path | None = None,
    layers: Sequence[int] | None = None,
    restore: bool | str = "auto",
    prop_attn: bool | str = "auto",
    scan_conv: str = "auto",
    scan_gap: str = "auto",
    positions: str = "auto",
    **options: Any,
) -> Model:
    """Make `model` process fewer tokens, in place, without training; returns the model. Patching again replaces the
    patch.

    Args:
        model: a vision transformer of a known family, or a module that holds exactly one; with `keep`, a
            vision-language model.
        method: a name from `methods()`; not needed where `schedule` is a file.
        ratio: fraction of the image tokens that is gone after the last reducing layer, in [0, 1).
        r: image tokens removed in every block, an int or a list with one int a block.
        flops: the share of the unpatched multiply-adds to keep, the reducer's own work included, in (0, 1].
        keep: the tokens of each image or video that enter the language model of a vision-language model: a share in
            (0, 1], or a number; or one for some of its layers, `{0: 0.5, 16: 0.5}`, of those that enter each. It takes
            no other budget, and says that the language model is meant: without it the vision tower is.
        schedule: a `Schedule`, which overrides the method's own shape, or a file that `calibrate` or `save_patch`
            wrote, which names the method and its options too. Give exactly one of ratio, r, flops, keep and schedule.
            Only adaptive methods may go without: their threshold then decides how many tokens each forward keeps.
        layers: the 0-based layers that reduce, instead of the method's own.
        restore: "auto" gives all tokens back where an output is a map (`forward_intermediates`, pooling heads) and
            leaves token outputs reduced; True always gives them back, False never does (a pooling head then weighs
            each token the same, however many it stands for). The name of a mode (copy, soft, freeze, delta, kriging)
            restores where "auto" would, in that mode.
        prop_attn: "auto" adds log(size) to each key's logit, so that a token standing for s others counts s times; it
            is off for masked-autoencoder weights, which it hurts.
        scan_conv: of state-space models, what the convolution reads in the place of a token that is gone: "stand_in",
            the token that stands for it, which "auto" is; "zeros", nothing; "compact", the next token that is left.
        scan_gap: of state-space models, how long a scan takes where tokens are gone: "size", which "auto" is, each
            token as many steps as it holds tokens; "hold", one each; "self", "prev", "bias" or "frozen", one each, and
            the state decays over a gap by steps guessed from the token after it, the one before it, the bias alone, or
            by the steps that the gone tokens had.
        positions: of the tokens that enter a language model. "keep": those that they had; "renumber": as if the others
            had never been there; "auto": as the method's paper does, and "keep" where positions are of time, height and
            width.
        options: the method's own, see `describe(method)`.

    Raises:
        ValueError, TypeError: a value, option, method, budget or model that does not fit; the model is left as it was.
    """
    if isinstance(schedule, (str, Path)):
        recorded = read_patch(schedule)
        recorded.agree(method, options)
        method, options, schedule = recorded.method, recorded.options, recorded.schedule
        keep = recorded.keep if keep is None else keep
        restore = recorded.restore if restore == "auto" else restore
        prop_attn = recorded.prop_attn if prop_attn == "auto" else prop_attn
        scan_conv = recorded.scan_conv if scan_conv == "auto" else scan_conv
        scan_gap = recorded.scan_gap if scan_gap == "auto" else scan_gap
        positions = recorded.positions if positions == "auto" else positions
    if keep is not None:
        given: dict[str, Any] = {"ratio": ratio, "r": r, "flops": flops, "schedule": schedule, "layers": layers}
        given |= {"restore": restore, "prop_attn": prop_attn, "scan_conv": scan_conv, "scan_gap": scan_gap}
        _install(*prepare_language(model, need_reducer(method, options), keep, positions, given))
        return model
    name, backbone, adapter = find_backbone(model)
    reducer = need_reducer(method, options)
    if all(budget is None for budget in (ratio, r, flops, schedule)):
        need_keep(reducer)
    if positions != "auto":
        raise InvalidTypeError(f"positions={positions!r} is for what enters a language model; give it with keep=")
    check_restore(reducer, restore)
    check_mode("prop_attn", prop_attn)
    scan = check_scan(backbone, adapter, scan_conv, scan_gap)
    outer = around(model, name)
    heads = auxiliary_heads(outer) if reads_heads(reducer) else None
    if heads is not None and layers is None and schedule is None and (r is None or isinstance(r, int)):
        layers = heads.auxiliary_layers
    made = _make_schedule(reducer, ratio, r, flops, schedule, layers, adapter.scans)
    made = made.restore_after(*reducer.rebuilt_after())
    reduction = _prepare(backbone, adapter, outer, reducer, made, restore, prop_attn, heads)
    if adapter.scans:
        asked: dict[str, bool | str] = {"scan_conv": scan_conv, "scan_gap": scan_gap}
        reduction = dataclasses.replace(reduction, scan=scan, requested=reduction.requested | asked)
    warn_of_language(adapter, backbone, outer, reduction.restoring, can_keep(model))
    _install(backbone, adapter, reduction)
    return model


def need_reducer(method: str | None, options: dict[str, Any]) -> Reducer:
    """The method with its options; there must be one."""
    if method is None:
        raise InvalidTypeError(f"no method was given; valid: {', '.join(methods())}, or schedule= with a file")
    return create(method, options)


def change_patch(model: Model, **changes: Any) -> Model:
    """Install the patch of `model` again with other fields of its `Reduction`, counts and budget as they were."""
    _, backbone, adapter = find_backbone(model)
    _install(backbone, adapter, dataclasses.replace(reduction_of(model), **changes))
    return model


def _install(backbone: nn.Module, adapter: Adapter, reduction: Any) -> None:
    """Install a patch, after removing the present one, if any; all or nothing."""
    _remove([(backbone, adapter)])
    try:
        adapter.install(backbone, reduction)
    except BaseException:
        adapter.remove(backbone)
        raise


def _remove(patched: Sequence[tuple[nn.Module, Adapter]]) -> None:
    """Remove the patches of these backbones, of those that have one: all, or none."""
    patched = [(backbone, adapter) for backbone, adapter in patched if patch_of(backbone) is not None]
    stuck = [reason for backbone, adapter in patched for reason in adapter.stuck(backbone)]
    if stuck:
        more = f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""
        raise InvalidValueError(
            f"the patch cannot be undone, as another tool has changed what it put in since: {'; '.join(stuck[:3])}"
            f"{more}; undo that first, or load the model anew (nothing was changed now)"
        )
    for backbone, adapter in patched:
        reduction = patch_of(backbone)
        adapter.remove(backbone)
        forget_everywhere(reduction)  # type: ignore[arg-type]


def unpatch(model: Model) -> Model:
    """Undo `patch`, in place: the same classes, hooks and forwards as before; returns the model, also if it is not
    patched.

    Raises: ValueError if another tool has changed what `patch` put in, before anything is undone.
    """
    _remove([(backbone, adapter) for _, backbone, adapter in candidates(need_module(model))])
    return model


@contextmanager
def reduced(model: Model, method: str | None = None, **arguments: Any) -> Iterator[Model]:
    """`patch` for the length of a `with` block; an earlier patch comes back afterwards. Takes the arguments of
    `patch`."""
    parts = candidates(need_module(model))
    before = [(part, adapter, patch_of(part)) for _, part, adapter in parts if patch_of(part) is not None]
    patch(model, method, **arguments)
    try:
        yield model
    finally:
        unpatch(model)
        for part, adapter, reduction in before:
            _install(part, adapter, reduction)


def report(model: nn.Module) -> Any:
    """What the patch does: tokens left in each layer, and the maps and sizes of the last forward.

    Returns a `Report` or, of what enters a language model, a `LanguageReport`: images, rows, multiply-adds and bytes
    of the cache of the last prompts.

    Raises: ValueError if the model is not patched.
    """
    language = language_reduction_of(model)
    if language is None or is_patched(model):
        reduction = reduction_of(model)
        tower = Report(reduction, last_record(reduction))
    if language is None:
        return tower
    _, part, adapter = find_language(model)
    costs = language_costs(part.get_submodule(adapter.language))
    return LanguageReport(language, last_record(language), costs, tower if is_patched(model) else None)


def check_mode(name: str, value: object) -> None:
    if not (isinstance(value, bool) or value == "auto"):
        raise InvalidValueError(f'{name} is {value!r}; valid: True, False, "auto"')


def _make_schedule(
    reducer: Reducer,
    ratio: float | None,
    r: int | Sequence[int] | None,
    flops: float | None,
    schedule: Schedule | None,
    layers: Sequence[int] | None,
    scans: bool,
) -> Schedule:
    given = {"ratio": ratio, "r": r, "flops": flops, "schedule": schedule}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if not named and reducer.adaptive:
        return Schedule.adaptive(layers)
    if len(named) != 1:
        what = " and ".join(named) if named else "no budget"
        raise InvalidTypeError(
            f"got {what}; give exactly one of ratio, r, flops, keep and schedule, for example flops=0.6"
        )
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
    shape = reducer.scan_shape if scans and not reducer.once else reducer.shape
    return Schedule.budget(shape, ratio, flops, layers)


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
    geometry = dataclasses.replace(geometry, costs=wrapped_costs(geometry.costs, backbone))
    schedule.check_layers(geometry.depth, geometry.needs_all)
    within = bool(geometry.needs_all or schedule.restored)
    reduction = Reduction(
        reducer,
        schedule,
        geometry,
        adapter.name,
        restoring=decide_restoring(reducer, adapter, backbone, outer, restore, within),
        prop_attn=adapter.prop_attn(backbone) if prop_attn == "auto" else bool(prop_attn),
        requested={"restore": restore, "prop_attn": prop_attn},
        owner=Owner(backbone, adapter, adapter.reads(backbone, ()), heads),
    )
    check_layers(reduction)
    return reduction
