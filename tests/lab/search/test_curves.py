"""Shapes of a schedule: what they leave, and that they meet a budget as closely as counts allow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import tokenreduce
from tokenreduce import Schedule
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.lab.search.curves import Found, Power, Sigmoid, grid, resolve
from tokenreduce.patching.finding import reduction_of

CURVES = [*grid(4), Found((1.0, 0.8, 0.6, 0.5))]


def reduction() -> Reduction:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=7).eval()
    return reduction_of(tokenreduce.patch(model, "random", schedule=Schedule.keep({0: 1.0})))


def test_powers_are_the_shapes_they_are_named_after() -> None:
    assert Power(1, 0, 4).shares(4, 0.2) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert Power(0, 1, 3).shares(4, 0.25) == pytest.approx([1, 0.5, 0.25, 0.25])
    assert Power(0.5, 0, 2).shares(2, 0.25) == pytest.approx([0.75**2, 0.25])
    assert Power(-1, 0, 2).shares(2, 0.25) == pytest.approx([1 / 2.5, 0.25])  # 1, 2.5 and 4 are a line


def test_a_sigmoid_falls_most_in_its_middle() -> None:
    shares = [1.0, *Sigmoid(0.5, 0.1).shares(8, 0.3)]
    falls = [a - b for a, b in pairwise(shares)]
    assert shares[-1] == pytest.approx(0.3) and min(falls) > 0
    assert max(falls) == max(falls[3:5])


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize("last", [0.001, 0.3, 1.0])
def test_shares_fall_from_one_to_the_last(curve: Power, last: float) -> None:
    shares = [1.0, *curve.shares(4, last)]
    assert shares[-1] == pytest.approx(last)
    assert all(a >= b - 1e-12 for a, b in pairwise(shares))


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_counts_are_the_most_that_the_budget_pays_for(curve: Power) -> None:
    patch, n, flops = reduction(), 64, 0.85
    counts = resolve(curve, patch, n, flops)
    ends = [step / 2000 for step in range(16, 2001)]
    every = {tuple(max(1, round(n * share)) for share in curve.shares(4, last)) for last in ends}
    costs = [patch.share(n, one) for one in every]
    assert patch.share(n, counts) == max(cost for cost in costs if cost <= flops)


def test_a_budget_out_of_reach_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"at least; ask for more than flops=0\.3"):
        resolve(Power(1, 3, 4), reduction(), 64, 0.3)
