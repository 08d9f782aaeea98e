"""Whether a method fits a model, and a budget fits both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from tokenreduce.budget.geometry import AuxiliaryHeads
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.scan_state import ScanRules, scan_rules
from tokenreduce.patches.shared.adapter import Adapter
from tokenreduce.reducers.contract import Reducer

LOGITS = "auxiliary_logits"  # the one entry of `Tokens` that comes from around the backbone


def reads_heads(reducer: Reducer) -> bool:
    """Whether a method reads the logits of auxiliary heads."""
    return LOGITS in reducer.required()


def auxiliary_heads(outer: Sequence[nn.Module]) -> AuxiliaryHeads | None:
    """The innermost module around the backbone that has heads for inner layers, or None."""
    parts = ("auxiliary_layers", "auxiliary_logits")
    found: Any = [module for module in outer if all(hasattr(module, part) for part in parts)]
    return found[-1] if found and found[-1].auxiliary_layers else None


def misfit(reducer: Reducer, backbone: nn.Module, adapter: Adapter, outer: Sequence[nn.Module]) -> str:
    """Why a method cannot run on a backbone; empty if it can."""
    reasons, missing = adapter.refusals(backbone), adapter.missing(backbone)
    if not reasons and "encoder" not in reducer.places:
        return "it is for what enters a language model, with keep="
    missing["text_attention"] = "there is no prompt before a vision transformer"
    missing["crops"] = "a vision transformer sees one picture"
    if auxiliary_heads(outer) is None:
        missing[LOGITS] = "no module around the backbone has auxiliary heads (auxiliary_layers and auxiliary_logits)"
    reasons += [f"it needs {need}, but {missing[need]}" for need in sorted(reducer.required()) if need in missing]
    if not reasons and reducer.placement == "post" and not adapter.geometry(backbone).in_a_row:
        reasons.append(
            "it reduces after a layer, but in this model every layer that can reduce is followed by one that needs all "
            "tokens"
        )
    return "; ".join(reasons)


def check_layers(reduction: Reduction) -> None:
    """Raise if the layers that would reduce are not those that the method or the model can reduce in."""
    reducer, geometry = reduction.reducer, reduction.geometry
    reducing = _reducing(reduction)
    in_a_row = [(a, b) for a, b in pairwise(reducing) if not reduction.full_layers & set(range(a + 1, b + 1))]
    if reducer.once and in_a_row:
        raise InvalidValueError(
            f"{reducer.name} can reduce in one layer only, but "
            f"{'it is to decide' if reduction.adaptive else 'this budget reduces'} in layers {reducing}; "
            f"give flops= or ratio= alone, or one layer, such as layers=[{reducing[0]}]"
        )
    if reduction.adaptive and not reducing:
        able = [layer for layer in range(geometry.depth) if layer not in geometry.needs_all]
        raise InvalidValueError(
            f"without a budget {reducer.name} decides in layers {list(reducer.deciding_layers(geometry.depth))}, which "
            f"need all tokens here; give layers= of {able}, or a budget, for example flops=0.8"
        )
    idle = [
        end
        for start, end in pairwise((0, *sorted(reduction.full_layers)))
        if not set(reducing) & set(range(start, end))
    ]
    wanted = [layer for layer in reduction.schedule.restored if layer + 1 in idle]
    if wanted and not reduction.is_identity(geometry.count):
        raise InvalidValueError(
            f"restore_after({wanted[0]}) has nothing to restore: no layer up to {wanted[0]} reduces (reducing layers: "
            f"{reducing}); name a later layer, or reduce earlier with layers= or schedule="
        )
    if reduction.heads is not None and not set(reducing) <= set(reduction.heads.auxiliary_layers):
        raise InvalidValueError(
            f"{reducer.name} reads auxiliary heads, which this model has after layers "
            f"{list(reduction.heads.auxiliary_layers)}, but should reduce in layers {reducing}; name those layers"
        )


def _reducing(reduction: Reduction) -> list[int]:
    if reduction.adaptive:
        return list(reduction.deciding_layers)
    n = reduction.geometry.count
    counts = reduction.counts(n)
    return [layer for layer, (a, b) in enumerate(zip(reduction.entering(n, counts), counts, strict=True)) if b < a]


def check_scan(backbone: nn.Module, adapter: Adapter, conv: str, gap: str) -> ScanRules:
    """What scans are to do where tokens are missing."""
    rules = scan_rules(conv, gap)
    if not adapter.scans and (conv, gap) != ("auto", "auto"):
        raise InvalidValueError(
            f"scan_conv={conv!r} and scan_gap={gap!r} are for state-space models, and {adapter.family} is none; leave "
            "them out"
        )
    refused = adapter.scan_refusals(backbone)
    for name, value, default in (("scan_conv", rules.conv, ScanRules.conv), ("scan_gap", rules.gap, ScanRules.gap)):
        if value in refused:
            raise InvalidValueError(
                f"{name} is {value!r}, which this {type(backbone).__name__} cannot do: {refused[value]}; leave it out, "
                f"or give {default!r}"
            )
    return rules
