"""Adaptive methods without a budget on a model: the counts follow the data of each forward."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import shared_model
from choosing import MAIN

import tokenreduce
from tokenreduce import Schedule, load_patch, patch, report, save_patch, unpatch

ADAPTIVE = [m for m in MAIN.methods if tokenreduce.describe(m)["adaptive"]]
BY_SIMILARITY = ("algm", "atm", "mame")

every_adaptive = pytest.mark.parametrize("method", ADAPTIVE)
by_similarity = pytest.mark.parametrize("method", BY_SIMILARITY)


@pytest.fixture
def model():
    """8 x 8 image tokens behind a class token, 4 blocks."""
    shared = shared_model(MAIN.name)
    with torch.no_grad():
        yield shared
    unpatch(shared)


def counts(model: torch.nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    model(x)
    return report(model).tokens


@by_similarity
def test_a_constant_image_keeps_fewer_tokens_than_a_noisy_one(model, method) -> None:
    patch(model, method)
    noisy = MAIN.images(1)
    constant, varied = counts(model, torch.ones_like(noisy)), counts(model, noisy)
    assert constant[-1] < varied[-1] <= 64
    assert all(a <= b for a, b in zip(constant, varied, strict=True))


@every_adaptive
def test_a_report_waits_for_a_forward_and_shows_its_counts(model, method) -> None:
    patch(model, method)
    with pytest.raises(ValueError, match=f"{method} has no budget, .* run the model first, then report"):
        report(model)
    seen = []
    handles = [b.mlp.fc1.register_forward_hook(lambda m, a, out: seen.append(out.shape[1] - 1)) for b in model.blocks]
    model(torch.ones_like(MAIN.images()))
    for handle in handles:
        handle.remove()
    shown = report(model)
    assert shown.input_tokens == 64 and len(shown.tokens) == 4
    if tokenreduce.describe(method)["placement"] == "mid":
        assert shown.tokens == tuple(seen)
    assert f"{shown.tokens_left:>7}" in str(shown)
    assert 0 < shown.flops_share <= 1.05
    assert shown.to_json()["schedule"]["rule"] == "adaptive"


@every_adaptive
def test_unpatch_and_forwards_that_do_not_leak(model, method) -> None:
    x = MAIN.images()
    y = torch.ones_like(MAIN.images(3))
    plain = model(x)
    patch(model, method)
    first, other = model(x), model(y)
    before = counts(model, x)
    assert torch.equal(model(y), other) and torch.equal(model(x), first)
    assert counts(model, x) == before
    assert torch.equal(unpatch(model)(x), plain)


@every_adaptive
def test_a_patch_without_budget_is_saved_and_loaded(model, method, tmp_path) -> None:
    x = torch.ones_like(MAIN.images())
    patch(model, method, layers=[1, 2])
    save_patch(model, tmp_path / "patch.json")
    twin = load_patch(unpatch(copy.deepcopy(model)), tmp_path / "patch.json")
    assert torch.equal(twin(x), model(x))
    assert report(twin).tokens == report(model).tokens
    assert report(twin).tokens[0] == 64 and report(twin).to_json() == report(model).to_json()


@by_similarity
def test_options_travel_with_the_patch(model, method, tmp_path) -> None:
    x = MAIN.images()
    options = {"atm": {"alpha": 2, "theta_min": 2}, "mame": {"tau": 1}, "algm": {"tau": 2, "layers": [0]}}[method]
    patch(model, method, **options)
    save_patch(model, tmp_path / "patch.json")
    twin = load_patch(unpatch(copy.deepcopy(model)), tmp_path / "patch.json")
    assert counts(twin, torch.ones_like(x)) == (64,) * 4, "nothing passes these thresholds"
    assert torch.equal(twin(x), unpatch(model)(x))


@by_similarity
def test_all_tokens_come_back_in_raster_order(model, method) -> None:
    """Four plain quadrants and equal positions: only equal tokens merge, so that restored maps are the unreduced."""
    twin = copy.deepcopy(model)
    twin.pos_embed[:, 1:] = twin.pos_embed[:, 1:2]
    quadrants = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2
    x = quadrants.repeat_interleave(16, 2).repeat_interleave(16, 3)
    features, maps = twin.forward_features(x), twin.forward_intermediates(x, intermediates_only=True)
    patch(twin, method, restore=True)
    restored = twin.forward_features(x)
    assert report(twin).tokens_left < 32
    assert restored.shape == features.shape and torch.allclose(restored, features, atol=1e-4)
    for a, b in zip(twin.forward_intermediates(x, intermediates_only=True), maps, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


@every_adaptive
def test_with_a_budget_the_counts_are_known_before_a_forward(model, method) -> None:
    patch(model, method, ratio=0.5)
    planned = report(model).tokens
    assert planned[-1] == 32
    assert counts(model, MAIN.images()) == planned == counts(model, torch.ones_like(MAIN.images()))


def test_a_static_method_needs_a_budget(model) -> None:
    with pytest.raises(TypeError, match=r"got no budget; give exactly one of ratio, r, flops, keep and schedule"):
        patch(model, "tome")
    with pytest.raises(TypeError, match="tome cannot decide counts itself; give a budget"):
        patch(model, "tome", schedule=Schedule.adaptive())
    assert not hasattr(model, "_tokenreduce")
