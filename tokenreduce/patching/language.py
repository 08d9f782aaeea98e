"""Patching what enters a language model: what `patch` does where `keep=` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.patching.finding import find_language
from tokenreduce.reducers.contract import POSITIONS, Ending, Reducer
from tokenreduce.reducers.registry import lookup, methods


def prepare_language(
    model: nn.Module, reducer: Reducer, keep: Any, positions: str, given: dict[str, Any]
) -> tuple[nn.Module, Any, LanguageReduction]:
    """The part of `model` to patch, its adapter, and the patch; checks everything that can fail.

    Args:
        given: what else was given to `patch`, which means nothing here.
    """
    _, part, adapter = find_language(model)
    others = [name for name, value in given.items() if value is not None and value != "auto"]
    if others:
        raise InvalidTypeError(
            f"{', '.join(others)} was given, but the budget of a language model is keep=, and what has left comes back "
            "in its outputs as the token before it; give keep= and positions= only"
        )
    reason = "; ".join(adapter.refusals(part)) or unfit(reducer, part, adapter)
    if reason:
        fitting = ", ".join(fitting_methods(part, adapter)) or "none"
        raise InvalidValueError(
            f"{reducer.name} cannot run before the language model of this {type(part).__name__}: {reason}; methods "
            f"that fit: {fitting}"
        )
    stages = choose_stages(reducer, part, adapter, keep)
    chosen = choose_positions(reducer, adapter, positions, stages)
    keep = dict(keep) if isinstance(keep, Mapping) else keep
    return part, adapter, LanguageReduction(reducer, keep, stages, chosen, adapter, positions)


def need_keep(reducer: Reducer) -> None:
    """Raise for a method that runs before language models alone, where no `keep` was given."""
    if reducer.places == frozenset({"language"}):
        raise InvalidTypeError(f"{reducer.name} reduces what enters a language model: give keep=0.1 or keep=64")


def unfit(reducer: Reducer, part: nn.Module, adapter: Any) -> str:
    """Why a method cannot run before this language model; empty if it can."""
    if "language" not in reducer.places:
        return "it is for the layers of a vision transformer"
    missing = adapter.missing_for(part, reducer.required())
    reasons = [f"it needs {name}, but {why}" for name, why in sorted(missing.items())]
    if reducer.averages_tower() and not adapter.showing_all(part):
        reasons.append("its vision tower does not show the attention of all its layers")
    if reducer.ending(depth_of(part, adapter)) is not None:
        reasons += [f"it ends within it, but {why}; give threshold=0" for why in adapter.refuse_layers(part)]
    return "; ".join(reasons)


def fitting_methods(part: nn.Module, adapter: Any) -> list[str]:
    """The methods that can run before this language model."""
    return [name for name in methods() if not unfit(lookup(name)(), part, adapter)]


def choose_stages(reducer: Reducer, part: Any, adapter: Any, keep: Any) -> tuple[tuple[int, Any], ...]:
    """The layers before which tokens leave, with what each keeps."""
    depth = depth_of(part, adapter)
    own = reducer.language_layers(depth)
    stages: dict[Any, Any] = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(own, keep)
    for layer, kept in stages.items():
        check_keep(kept)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
            raise InvalidValueError(f"layer {layer!r} does not exist: the language model has layers 0 to {depth - 1}")
    if not stages:
        raise InvalidValueError("keep names no layer; give keep=0.5, or for example keep={2: 0.5}")
    reason = "; ".join(adapter.refuse_layers(part)) if any(stages) else ""
    if reason:
        raise InvalidValueError(f"{reducer.name} cannot let tokens leave before layer {max(stages)}: {reason}")
    if 0 in stages and "text_attention" in reducer.required():
        raise InvalidValueError(
            f"{reducer.name} reads the attention of the layer before, and layer 0 has none; name layers from 1 on"
        )
    return (*sorted(stages.items()), *ending_of(reducer, depth, stages))


def depth_of(part: Any, adapter: Any) -> int:
    """Layers of the language model."""
    return int(part.get_submodule(adapter.language).config.num_hidden_layers)


def ending_of(reducer: Reducer, depth: int, stages: Mapping[int, Any]) -> tuple[tuple[int, Ending], ...]:
    """The method's ending as the last stage; there is none where nothing leaves."""
    ending = reducer.ending(depth)
    if ending is None or all(isinstance(keep, float) and keep == 1 for keep in stages.values()):
        return ()
    if max(stages) >= ending.layer:
        raise InvalidValueError(
            f"{reducer.name} ends before layer {ending.layer}, and keep names layer {max(stages)}; name layers before "
            "it, or give threshold=0"
        )
    return ((ending.layer, ending),)


def check_keep(keep: object) -> None:
    """Raise unless it is a budget."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise InvalidTypeError(f"keep is {keep!r}; it must be a share such as 0.1, or a number of tokens such as 64")
    if isinstance(keep, float) and not 0 < keep <= 1:
        raise InvalidValueError(f"keep is {keep}; as a share it lies in (0, 1], and a number of tokens is an int")
    if keep < 1 and isinstance(keep, int):
        raise InvalidValueError(f"keep is {keep}; at least one token of each image is left")


def choose_positions(reducer: Reducer, adapter: Any, asked: object, stages: Sequence[tuple[int, Any]]) -> str:
    """What `positions=asked` means here."""
    if asked not in ("auto", *POSITIONS):
        raise InvalidValueError(f'positions is {asked!r}; valid: "auto", {", ".join(repr(name) for name in POSITIONS)}')
    if asked == "renumber" and adapter.rotates_in_3d:
        raise InvalidValueError(
            "this model rotates tokens by time, height and width, which cannot be counted anew where tokens have left; "
            'give positions="keep" or "auto"'
        )
    within = any(layer for layer, _ in stages)
    if asked == "renumber" and within:
        raise InvalidValueError(
            "tokens that leave within the language model have been rotated to their positions already; give "
            'positions="keep" or "auto"'
        )
    if asked == "auto":
        return "keep" if adapter.rotates_in_3d or within else reducer.positions
    return str(asked)
