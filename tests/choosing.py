"""Which methods a law runs on which rows: by what `describe` says of a method and by the facts of a row, not by lists.

A new method runs on the first row of every adapter that it fits, a new row with the sample of methods. What remains of
the full product runs in `make test-all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from backbones import BACKBONES, BY_NAME, FACTS, METHODS, ROWS, Backbone

import tokenreduce
from tokenreduce.reducers.registry import lookup

MAIN = BY_NAME["timm_vit_qk_norm"]  # the row that stands for all in laws that do not depend on the family
SHORT = BY_NAME["timm_vit_short"]  # for compilers, whose time grows with the layers
SAMPLE = ("tome", "evit", "pool", "ward")  # methods that stand for all: merged, pruned, by place, without any keys
full_product = False  # the pairs of `-m full` are made only if it is asked for: there are thousands


def kind_of(method: str) -> tuple[Any, ...]:
    """What compilers see of a method: methods of one kind make their maps of the same parts."""
    facts, cls = FACTS[method], lookup(method)
    stateful = cls.begin is not tokenreduce.Reducer.begin
    return facts["kind"], facts["placement"], stateful, "soft" in facts["modes"], "frames" in facts["needs"]


def one_of_each_kind() -> list[str]:
    """The first method of every kind that can be exported."""
    first: dict[tuple[Any, ...], str] = {}
    for method in filter(exportable, METHODS):
        first.setdefault(kind_of(method), method)
    return sorted(first.values())


def exportable(method: str) -> bool:
    return FACTS[method]["exportable"] is True


def finds_duplicates(method: str) -> bool:
    """Whether a method must merge identical tokens first: it merges by likeness, anywhere, and by nothing else."""
    facts = FACTS[method]
    return facts["kind"] in ("merging", "clustering") and not {"class_attention", "frames"} & {*facts["needs"]}


def family_facts(row: Backbone) -> tuple[Any, ...]:
    """The library, and what compilers see of a family."""
    facts = row.rotary, row.biased, row.unmasked, row.videos, bool(row.map_attention), row.suffix > 0, row.scans
    return row.name.split("_")[0], *facts


def one_of_each_family_kind() -> list[Backbone]:
    """Of the first rows of all adapters, the first of those whose library and facts are the same."""
    first: dict[tuple[Any, ...], Backbone] = {}
    for row in (rows[0] for rows in ROWS if rows[0].traceable):
        first.setdefault(family_facts(row), row)
    return [*first.values()]


def one_of_each_family_fact() -> list[Backbone]:
    """Of those kinds few, which together have every library and every fact."""
    few, seen = [], set()
    for row in reversed(one_of_each_family_kind()):  # the last ones have several facts
        facts = {(place, fact) for place, fact in enumerate(family_facts(row)) if fact}
        few += [row] if facts - seen else []
        seen |= facts
    return few


def first_rows(method: str, where: Callable[[Backbone], bool] = lambda row: True) -> list[Backbone]:
    """The first row of every adapter, among those `where` says, that the method fits."""
    fitting = ([row for row in rows if where(row) and row.fits(method)] for rows in ROWS)
    return [rows[0] for rows in fitting if rows]


def main_row(method: str, row: Backbone = MAIN) -> Backbone:
    """The row that stands for all, or for a method that does not fit it, the first that it fits."""
    return row if row.fits(method) else first_rows(method)[0]


def pairs(
    everywhere: Iterable[str] = (),
    first: Iterable[str] = (),
    main: Iterable[str] = (),
    chosen: Iterable[tuple[str, str]] = (),
    where: Callable[[Backbone], bool] = lambda row: True,
    among: Callable[[str], bool] = lambda method: True,
) -> Any:
    """Parametrize `backbone` and `method` with pairs that run every day, and all others in the full product.

    Args:
        everywhere: methods for every row.
        first: methods for the first row of every adapter that they fit.
        main: methods for one row.
        chosen: pairs of a row's name and a method.
        where: the rows that the law holds for.
        among: the methods that it holds for.
    """
    on_every_row = set(everywhere)
    daily = {*chosen} | {(row.name, method) for method in first for row in first_rows(method, where)}
    daily |= {(main_row(method).name, method) for method in main}
    rows = []
    for row in filter(where, BACKBONES):
        for method in filter(among, row.methods):
            every_day = method in on_every_row or (row.name, method) in daily
            if every_day or full_product:
                marks = () if every_day else (pytest.mark.full,)
                rows.append(pytest.param(row, method, id=f"{row.name}-{method}", marks=marks))
    return pytest.mark.parametrize(("backbone", "method"), rows)


def every_backbone(where: Callable[[Backbone], bool] = lambda row: True) -> Any:
    """Parametrize `backbone`."""
    return pytest.mark.parametrize("backbone", [row for row in BACKBONES if where(row)], ids=lambda row: row.name)


def on_one_row(methods: Iterable[str] = METHODS, row: Backbone = MAIN) -> Any:
    """Parametrize `backbone` and `method`: these methods on this row, or the first that they fit."""
    rows = [pytest.param(main_row(method, row), method, id=method) for method in methods]
    return pytest.mark.parametrize(("backbone", "method"), rows)
