"""`mtr` against a slow reference written from its specification."""

from __future__ import annotations

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def similarity(case: Case, i: int, j: int) -> float:
    return round(float(torch.nn.functional.cosine_similarity(case.x[0, i], case.x[0, j], dim=0)), 5)


def groups(case: Case, keep: int) -> tuple[list[int], dict[int, int]]:
    """The tokens that stay, in raster order, and the target that each source joins."""
    removed = case.n - keep
    step = [float(case.time_step[0, i].double().mean()) for i in range(case.n)]
    order = sorted(range(case.n), key=lambda i: (round(step[i], 6), i))
    sources, targets = order[:removed], order[removed : removed + min(removed, keep)]
    joins = {}
    for i in sources:
        best = max(similarity(case, i, j) for j in targets)
        joins[i] = next(j for j in targets if similarity(case, i, j) == best)
    return sorted(order[removed:]), joins


@given(cases(least=2), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_matches_the_specification(case: Case, weighted: bool, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = tokenreduce.plan(case.x, "mtr", keep=keep, weighted=weighted, **case.arguments("time_step"))
    stay, joins = groups(case, keep)
    assert token_map.rep[0].tolist() == stay
    assert token_map.dest[0].tolist() == [stay.index(joins.get(i, i)) for i in range(case.n)]
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for out, target in enumerate(stay):
        members = [target, *(i for i, joined in joins.items() if joined == target)]
        mass = torch.tensor([case.mass[i] for i in members])
        share = mass / mass.sum() if weighted else torch.full_like(mass, 1 / len(members))
        torch.testing.assert_close(y[0, out], share @ case.x[0, members], rtol=1e-5, atol=1e-5)
        assert float(sizes[0, out]) == pytest.approx(float(mass.sum() if weighted else mass[0]))
    assert torch.equal(tokenreduce.restore(token_map, y), y[:, token_map.dest[0]])


def test_groups_of_a_worked_example() -> None:
    """Of six tokens two go: 5 and 2 have the shortest steps, 0 and 3 the next ones, 1 and 4 take part in nothing."""
    step = torch.tensor([3.0, 9.0, 2.0, 4.0, 8.0, 1.0])[None, :, None]
    x = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.1, 1]])[None]
    token_map = tokenreduce.plan(x, "mtr", keep=4, time_step=step)
    assert token_map.rep.tolist() == [[0, 1, 3, 4]]
    assert token_map.dest.tolist() == [[0, 1, 0, 2, 3, 2]], "token 5 is most like token 4, which is no target"


def test_channels_and_directions_are_averaged() -> None:
    step = torch.tensor([[[9.0, 0], [4, 4], [1, 1], [5, 5]]])
    token_map = tokenreduce.plan(torch.eye(4)[None], "mtr", keep=3, time_step=step)
    assert token_map.sources.tolist() == [[2]] and token_map.dest[0, 2] == token_map.dest[0, 1]


def test_what_it_needs() -> None:
    assert create("mtr", {}).required() == {"time_step"}
    with pytest.raises(ValueError, match="mtr needs time_step; pass it to plan"):
        tokenreduce.plan(torch.randn(1, 4, 2), "mtr", keep=2)
    with pytest.raises(TypeError, match="weighted"):
        create("mtr", {"weighted": 1})
