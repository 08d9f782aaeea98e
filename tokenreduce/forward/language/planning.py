"""Planning which tokens of each image stay, image by image of one size at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.budget.phase import working
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.reduction import Keep, count_left
from tokenreduce.forward.language.units import Facts, Grid, Unit
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.modes import without_autocast
from tokenreduce.reducers import functional
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.entries import ENTRIES


class Planned(NamedTuple):
    """What becomes of U units of one size: their numbers, the prompts that they are in `(U,)`, where their tokens stand
    `(U, T)`, the maps with the sizes before each, and of what is left, in the order of the prompt, which of the maps'
    outputs it is, which of the T tokens stands for it, where, and for how many it stands, `(U, M)` each."""

    numbers: list[int]
    prompts: Tensor
    places: Tensor
    steps: tuple[tuple[TokenMap, Tensor | None], ...]
    order: Tensor
    members: Tensor
    kept: Tensor
    sizes: Tensor

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

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """What is left of the units that were planned for."""
        found = list(units)
        for part in self.planned:
            rows = zip(part.numbers, part.kept, part.members, part.sizes, strict=True)
            for number, kept, members, sizes in rows:
                unit = units[number]
                found[number] = Unit(unit.prompt, kept, unit.facts.of(members), sizes)
        return found


class Ended(Removal):
    """All tokens of the `units` of some prompts leave: of those for which `ends` is True."""

    def __init__(
        self, units: Sequence[Unit], ends: Sequence[bool], shape: tuple[int, int], device: torch.device
    ) -> None:
        super().__init__((), shape, device)
        self.ends = ends
        for unit in units:
            self.removed[unit.prompt, unit.places] = ends[unit.prompt]

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        return [Unit(unit.prompt, unit.places[:0], Facts()) if self.ends[unit.prompt] else unit for unit in units]


def plan_removal(
    reducer: Reducer, keep: Keep, units: Sequence[Unit], x: Tensor, text_attention: Tensor | None = None
) -> Removal:
    """Plan for all `units` in `x (B, n, C)`, of which each keeps its share or number.

    Args:
        text_attention: `(B, n)`, of the last word of each prompt, where the method reads it.
    """
    groups: dict[tuple[int, Grid | None, bool], list[int]] = {}
    for number, unit in enumerate(units):
        if count_left(len(unit.places), keep) < len(unit.places):
            alike = len(unit.places), unit.facts.grid, unit.sizes is None
            groups.setdefault(alike, []).append(number)
    planned = []
    with working("reducer"), torch.no_grad(), without_autocast(x.device):
        for (entered, grid, single), numbers in groups.items():
            some = [units[number] for number in numbers]
            prompts = torch.tensor([unit.prompt for unit in some], device=x.device)
            places = torch.stack([unit.places for unit in some])
            shown = _shown(reducer, some, prompts, places, text_attention)
            rows = x.detach()[prompts[:, None], places]
            before = None if single else torch.stack([unit.sizes for unit in some])  # type: ignore[misc]
            steps, rep, sizes = plan_in_steps(reducer, rows, count_left(entered, keep), grid, shown, before)
            order = rep.argsort(dim=1)
            members, sizes = rep.gather(1, order), sizes.gather(1, order)
            kept = places.gather(1, members)
            planned.append(Planned(numbers, prompts, places, steps, order, members, kept, sizes))
    return Removal(planned, (x.shape[0], x.shape[1]), x.device)


def _shown(
    reducer: Reducer, units: Sequence[Unit], prompts: Tensor, places: Tensor, text_attention: Tensor | None
) -> dict[str, Tensor]:
    """What the method reads of these units besides their rows, entries of U images of T tokens."""
    facts = [unit.facts.shown() for unit in units]
    read = (reducer.required() | reducer.uses).intersection(*facts)
    shown = {name: torch.stack([each[name] for each in facts]) for name in sorted(read)}
    if "text_attention" in reducer.required() and text_attention is not None:
        shown["text_attention"] = text_attention.to(places.device)[prompts[:, None], places]
    return shown


def plan_in_steps(
    reducer: Reducer, rows: Tensor, keep: int, grid: Grid | None, shown: dict[str, Tensor], sizes: Tensor | None
) -> tuple[tuple[tuple[TokenMap, Tensor | None], ...], Tensor, Tensor]:
    """The maps that leave `keep` of `rows (U, T, C)`, fewer than T, with the sizes before each, and the token that
    represents each output and its size, `(U, keep)`. A method that cannot remove so many at once does it again with
    what is left.

    Args:
        shown: what the method reads besides, entries of the same images.
        sizes: `(U, T)`, how many tokens each row stands for; None: one.
    """
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
        rep, shown = rep.gather(1, members), {name: of_members(name, x, members) for name, x in shown.items()}
        rows, sizes = token_map.apply(rows, sizes), token_map.sizes(sizes)
    assert sizes is not None
    return tuple(steps), rep, sizes


def of_members(name: str, entry: Tensor, members: Tensor) -> Tensor:
    """What an entry says of the tokens `members (U, M)`."""
    axis = ENTRIES[name].shape.index("N")
    shape = [members.shape[i // axis] if i in (0, axis) else 1 for i in range(entry.ndim)]
    index = members.view(shape).expand(*entry.shape[:axis], -1, *entry.shape[axis + 1 :])
    return entry.gather(axis, index)
