"""Tokens that only pad: what they hold decides nothing, and they go before any real token is lost."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, Inputs, fresh_model

import tokenreduce
from tokenreduce import Schedule, patch, report
from tokenreduce.reducers.entries import far_away

ROWS = {
    "hf_siglip2_padded": ("pixel_values", "pixel_attention_mask"),
    "timm_naflex_padded": ("x", "patch_valid"),
    "timm_naflex_padded_rope": ("x", "patch_valid"),
}
METHODS = [(name, m) for name in ROWS for m in tokenreduce.methods() if m not in BY_NAME[name].refuses]


def other_padding(name: str, inputs: Inputs) -> Inputs:
    """The same images with padding of large and of undefined numbers."""
    argument, mask = ROWS[name]
    images, real = inputs[argument].clone(), inputs[mask].bool()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)) * 100
    noise[-1] = torch.nan
    return inputs | {argument: images.where(real[..., None], noise)}


@pytest.mark.parametrize(("name", "method"), METHODS)
@pytest.mark.parametrize("budget", [{"ratio": 0.3}, {"ratio": 0.6}])
def test_content_of_padding_changes_nothing(name: str, method: str, budget: dict) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    inputs = backbone.inputs(4)
    patch(model, method, **budget)
    with torch.no_grad():
        expected = backbone.outputs(model, inputs)
        changed = [out.nan_to_num() for out in backbone.outputs(model, other_padding(name, inputs))]
    assert all(out.isfinite().all() for out in expected)
    assert all(torch.equal(a, b) for a, b in zip(expected, changed, strict=True))
    assert report(model).tokens_left < backbone.count


@pytest.mark.parametrize(
    ("name", "method"), [pair for pair in METHODS if pair[1] in ("tome", "ward", "atc", "mctf", "evit", "topk")]
)
def test_padding_goes_first(name: str, method: str) -> None:
    """Methods that merge the nearest or drop what gets no attention change nothing while there is padding to remove."""
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    inputs = backbone.inputs(3)  # with 24, 16 and 8 tokens of padding, half of them possible sources
    with torch.no_grad():
        expected = backbone.outputs(model, inputs)
        patch(model, method, schedule=Schedule.keep({2: backbone.count - 4}), restore=True)
        reduced = backbone.outputs(model, inputs)
    assert report(model).tokens_left == backbone.count - 4
    for a, b in zip(expected, reduced, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_no_two_real_tokens_meet_in_padding(name: str, method: str) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    inputs = backbone.inputs(4)
    real = inputs[ROWS[name][1]].bool()
    patch(model, method, schedule=Schedule.keep({2: 40}))
    with torch.no_grad():
        backbone.outputs(model, inputs)
    [(_, token_map)] = report(model).maps
    if token_map.dest is None or token_map.rep is None:
        pytest.skip("shares tokens out")
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
