"""Tokens that only pad: what they hold decides nothing, and they go before any real token is lost."""

from __future__ import annotations

import pytest
import torch
from backbones import Backbone, Inputs, fresh_model
from choosing import pairs

import tokenreduce
from tokenreduce import Schedule, patch, report
from tokenreduce.reducers.entries import far_away


def has_padding(row: Backbone) -> bool:
    return bool(row.padded)


def moves_whole_tokens(method: str) -> bool:
    """Not so methods that share tokens out, whose maps are matrices."""
    return "soft" not in tokenreduce.describe(method)["modes"]


# Of those that merge what is nearest or drop what gets no attention: padding is nearest to padding, and gets none.
BY_LIKENESS_OR_ATTENTION = ("tome", "ward", "atc", "mctf", "evit", "topk")
each_method = pairs(where=has_padding, first=tokenreduce.methods("encoder"))


def other_padding(backbone: Backbone, inputs: Inputs) -> Inputs:
    """The same images with padding of large and of undefined numbers."""
    images, real = inputs[backbone.argument].clone(), inputs[backbone.padded].bool()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)) * 100
    noise[-1] = torch.nan
    return inputs | {backbone.argument: images.where(real[..., None], noise)}


@each_method
@pytest.mark.parametrize("budget", [{"ratio": 0.3}, {"ratio": 0.6}])
def test_content_of_padding_changes_nothing(backbone: Backbone, method: str, budget: dict) -> None:
    model = fresh_model(backbone)
    inputs = backbone.inputs(4)
    patch(model, method, **budget)
    with torch.no_grad():
        expected = backbone.outputs(model, inputs)
        changed = [out.nan_to_num() for out in backbone.outputs(model, other_padding(backbone, inputs))]
    assert all(out.isfinite().all() for out in expected)
    assert all(torch.equal(a, b) for a, b in zip(expected, changed, strict=True))
    assert report(model).tokens_left < backbone.count


@pairs(where=has_padding, first=tokenreduce.methods("encoder"), among=lambda method: method in BY_LIKENESS_OR_ATTENTION)
def test_padding_goes_first(backbone: Backbone, method: str) -> None:
    """Methods that merge the nearest or drop what gets no attention change nothing while there is padding to remove."""
    model = fresh_model(backbone)
    inputs = backbone.inputs(3)  # with 24, 16 and 8 tokens of padding, half of them possible sources
    with torch.no_grad():
        expected = backbone.outputs(model, inputs)
        patch(model, method, schedule=Schedule.keep({2: backbone.count - 4}), restore=True)
        reduced = backbone.outputs(model, inputs)
    assert report(model).tokens_left == backbone.count - 4
    for a, b in zip(expected, reduced, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pairs(where=has_padding, first=tokenreduce.methods("encoder"), among=moves_whole_tokens)
def test_no_two_real_tokens_meet_in_padding(backbone: Backbone, method: str) -> None:
    model = fresh_model(backbone)
    inputs = backbone.inputs(4)
    real = inputs[backbone.padded].bool()
    patch(model, method, schedule=Schedule.keep({2: 40}))
    with torch.no_grad():
        backbone.outputs(model, inputs)
    [(_, token_map)] = report(model).maps
    moved = real if token_map.weight is None else real & (token_map.weight > 0)
    members = torch.zeros(4, token_map.count).scatter_add(1, token_map.dest, moved.float())
    assert members.where(~real.gather(1, token_map.rep), 0).max() <= 1


def test_far_away_is_one_point_opposite_to_the_rest() -> None:
    heads = torch.randn(2, 3, 6, 4) + 1
    padding = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])
    seen = far_away(heads, padding)
    assert torch.equal(seen[1], heads[1]) and torch.equal(seen[0, :, :4], heads[0, :, :4])
    point = seen[0, :, 4]
    assert torch.equal(seen[0, :, 5], point)
    assert ((point[:, None] @ heads[0, :, :4].mean(1)[..., None]) < 0).all()
    assert (point.norm(dim=-1)[:, None] >= heads[0, :, :4].norm(dim=-1)).all()
