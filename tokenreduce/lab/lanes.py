"""Lanes: independent copies of one model, each prepared once, so that nothing is patched inside a timed loop."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.rows import Row
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.verbs import change_patch, patch, unpatch

Made = TypeVar("Made")


def try_arms(arms: Sequence[Arm], make: Callable[[Arm], Made]) -> tuple[list[tuple[Arm, Made]], list[Row]]:
    """Each arm that the model can reach with what `make` gives for it, and a row with the reason (`refused`) for each
    of the others.

    Raises: ValueError if there are arms and none can be reached.
    """
    made: list[tuple[Arm, Made]] = []
    refused: list[Row] = []
    for arm in arms:
        try:
            made.append((arm, make(arm)))
        except InvalidValueError as error:
            named = {"method": arm.method, "budget": arm.budget, "options": arm.options}
            refused.append(named | {"refused": str(error)})
    if refused and not made:
        raise InvalidValueError("; ".join(row["refused"] for row in refused))
    return made, refused


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` with its own modules; parameters and buffers are shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def unpatched_lane(model: nn.Module, like: Tensor) -> nn.Module:
    """The unpatched model in eval mode, on the device and in the dtype of `like`; `model` stays as it is."""
    fits = all(
        tensor.device == like.device and (tensor.dtype == like.dtype or not tensor.is_floating_point())
        for tensor in chain(model.parameters(), model.buffers())
    )
    # Weights are shared only where `to` has nothing to do: it would change them in the model that was given.
    lane = twin(model) if fits else copy.deepcopy(model).to(like.device, like.dtype)
    return unpatch(lane).eval()


def patched_lane(base: nn.Module, arm: Arm) -> nn.Module:
    """A twin of `base`, patched as `arm` says."""
    return patch(twin(base), arm.method, **arm.arguments)


def restored_lane(base: nn.Module, arm: Arm) -> nn.Module:
    """Like `patched_lane`, with all tokens restored at the end outside the budget. (`patch(restore=True)` would charge
    restoring to the budget and keep fewer tokens.)"""
    lane = patched_lane(base, arm)
    return change_patch(lane, restoring=dataclasses.replace(reduction_of(lane).restoring, ends=True))


@contextmanager
def limit_lane(base: nn.Module, counts: tuple[int, ...] | None, placement: str) -> Iterator[nn.Module]:
    """A twin of `base` whose layers leave `counts` image tokens by slicing; None removes nothing.

    Raises: ValueError for a model whose family cannot slice.
    """
    lane = twin(base)
    if counts is None:
        yield lane
        return
    _, backbone, adapter = find_backbone(lane)
    with adapter.sliced(backbone, counts, placement):
        yield lane
