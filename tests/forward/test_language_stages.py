"""What a token stands for is known in later stages, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenreduce.forward.language.planning import plan_removal
from tokenreduce.forward.language.units import Facts, Unit
from tokenreduce.reducers.registry import create

N, SMALL = 16, 1e-4


def marked() -> Tensor:
    """`(1, 2 + N + 1, 8 + N)`: tokens of an image between words, each with a small mark of its own, which tells of
    every row what it is made of."""
    x = torch.randn(1, N + 3, 8 + N, generator=torch.Generator().manual_seed(0))
    x[..., 8:] = 0
    x[0, 2 : 2 + N, 8:] = SMALL * torch.eye(N)
    return x


@pytest.mark.parametrize("method", ["tome", "pitome", "ward", "kmeans", "atc"])
@pytest.mark.parametrize("stages", [(0.5, 0.5), (0.5, 0.75, 0.5)], ids=str)
def test_a_merged_token_is_the_mean_of_all_that_it_stands_for(method: str, stages: tuple[float, ...]) -> None:
    x, reducer = marked(), create(method, {})
    units = [Unit(0, torch.arange(2, 2 + N), Facts())]
    for keep in stages:
        removal = plan_removal(reducer, keep, units, x)
        x, units = removal.carry(x), removal.left(units)
    (unit,) = units
    shares = x[0, unit.places, 8:] / SMALL
    members = shares > 1e-3
    assert torch.equal(members.sum(0), torch.ones(N, dtype=torch.long))  # each in one
    assert unit.sizes is not None and torch.equal(unit.sizes, members.sum(1).float()) and unit.sizes.max() > 2
    assert torch.allclose(shares, members / members.sum(1, keepdim=True), atol=1e-3)


def test_units_that_have_lost_tokens_and_others_of_their_length() -> None:
    """They are planned apart, so that none depends on what else is in the batch."""
    x, reducer = torch.cat([marked(), marked()]), create("tome", {})
    units = [Unit(0, torch.arange(2, 2 + N), Facts()), Unit(1, torch.arange(2, 2 + N // 2), Facts())]
    for keep in (8, 4):
        removal = plan_removal(reducer, keep, units, x)
        x, units = removal.carry(x), removal.left(units)
    assert [len(unit.places) for unit in units] == [4, 4]
    assert [float(unit.sizes.sum()) for unit in units if unit.sizes is not None] == [N, N // 2]
