"""Planning which tokens of each image enter the language model, image by image of one size at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.budget.phase import working
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.forward.language.units import Grid, Unit
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.modes import without_autocast
from tokenreduce.reducers import functional
from tokenreduce.reducers.contract import Reducer


class Planned(NamedTuple):
    """What becomes of U units of one size: the prompts that they are in `(U,)`, where their tokens stand `(U, T)`, the
    maps with the sizes before each, and of what is left, in the order of the prompt, which of the maps' outputs it is
    and where it stands, `(U, M)` each."""

    prompts: Tensor
    places: Tensor
    steps: tuple[tuple[TokenMap, Tensor | None], ...]
    order: Tensor
    kept: Tensor

    def carry(self, x: Tensor) -> Tensor:
        """`x (B, n, C)` with what the tokens left hold, at their places."""
        if all(step.drops and step.gain is None for step, _ in self.steps):
            return x
        where = self.prompts[:, None]
        with without_autocast(x.device):
            rows = x[where, self.places]
            for token_map, sizes in self.steps:
                rows = token_map.apply(rows, sizes)
        rows = rows.gather(1, self.order[..., None].expand(-1, -1, rows.shape[-1]))
        return x.index_put((where, self.kept), rows)


class Removal:
    """Which places of the prompts leave, `(B, n)`, and what the places that stay take over."""

    def __init__(self, planned: Sequence[Planned], shape: tuple[int, int], device: torch.device) -> None:
        self.planned = planned
        self.removed = torch.zeros(shape, dtype=torch.bool, device=device)
        for part in planned:
            self.removed[part.prompts[:, None], part.places] = True
        for part in planned:
            self.removed[part.prompts[:, None], part.kept] = False

    def carry(self, x: Tensor) -> Tensor:
        """`x (B, n, C)` with what each place that stays holds now."""
        for part in self.planned:
            x = part.carry(x)
        return x


def plan_removal(reduction: LanguageReduction, units: Sequence[Unit], x: Tensor) -> Removal | None:
    """Plan for all `units` in `x (B, n, C)`; None if nothing leaves."""
    groups: dict[tuple[int, Grid | None], list[Unit]] = {}
    for unit in units:
        if reduction.count(len(unit.places)) < len(unit.places):
            groups.setdefault((len(unit.places), unit.facts.grid), []).append(unit)
    if not groups:
        return None
    planned = [_plan(reduction, group, grid, x) for (_, grid), group in groups.items()]
    return Removal(planned, (x.shape[0], x.shape[1]), x.device)


def _plan(reduction: LanguageReduction, units: Sequence[Unit], grid: Grid | None, x: Tensor) -> Planned:
    prompts = torch.tensor([unit.prompt for unit in units], device=x.device)
    places = torch.stack([unit.places for unit in units])
    keep = reduction.count(places.shape[1])
    with working("reducer"), torch.no_grad(), without_autocast(x.device):
        rows, shown = x.detach()[prompts[:, None], places], {}
        if "class_attention" in reduction.reducer.required():
            shown["class_attention"] = torch.stack([unit.facts.class_attention for unit in units])  # type: ignore[misc]
        steps, rep = plan_in_steps(reduction.reducer, rows, keep, grid, shown)
        order = rep.argsort(dim=1)
        kept = places.gather(1, rep.gather(1, order))
    return Planned(prompts, places, steps, order, kept)


def plan_in_steps(
    reducer: Reducer, rows: Tensor, keep: int, grid: Grid | None, shown: dict[str, Tensor]
) -> tuple[tuple[tuple[TokenMap, Tensor | None], ...], Tensor]:
    """The maps that leave `keep` of `rows (U, T, C)`, with the sizes before each, and the token that represents each
    output `(U, keep)`. A method that cannot remove so many at once does it again with what is left.

    Args:
        shown: what the method reads besides, `(U, T)` each.
    """
    sizes: Tensor | None = None
    steps: list[tuple[TokenMap, Tensor | None]] = []
    rep = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[0], -1)
    options: dict[str, Any] = reducer.options()
    while (n := rows.shape[1]) > keep:
        count = max(keep, reducer.least_of(n, grid))
        if count >= n:
            raise InvalidValueError(
                f"{reducer.name} cannot leave {keep} tokens of an image: it stops at {n}; keep more"
            )
        token_map = functional.plan(rows, reducer.name, keep=count, sizes=sizes, grid=grid, **(options | shown))
        steps.append((token_map, sizes))
        members = token_map.representatives()
        rep, shown = rep.gather(1, members), {name: x.gather(1, members) for name, x in shown.items()}
        rows, sizes = token_map.apply(rows, sizes), token_map.sizes(sizes)
    return tuple(steps), rep
