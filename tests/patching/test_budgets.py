"""Budgets of multiply-adds on a model: they are met, for every method, image size and kind of model."""

from __future__ import annotations

import pytest
import timm
import torch
from backbones import BY_NAME, fresh_model
from choosing import MAIN
from torch import nn

import tokenreduce
from tokenreduce import patch, reduced, report


@pytest.mark.parametrize("flops", [0.80, 0.60, 0.45])
@pytest.mark.parametrize("method", MAIN.methods)
def test_flops_lands_within_two_points(method, flops) -> None:
    """On twelve narrow layers, where the methods' own work weighs most. All of them reach these budgets."""
    model = timm.create_model("deit_small_patch16_224", img_size=112, embed_dim=96, num_heads=3).eval()
    check_budget(model, torch.zeros(1, 3, 112, 112), 75_823_872, method, flops)


def test_flops_lands_within_two_points_on_deit_small() -> None:
    model = timm.create_model("deit_small_patch16_224").eval()
    check_budget(model, torch.zeros(1, 3, 224, 224), 4_598_882_304, "tome", 0.6)


def check_budget(model: nn.Module, x: torch.Tensor, whole: int, method: str, flops: float) -> None:
    patch(model, method, flops=flops)
    counted = tokenreduce.count_flops(model, x)
    assert counted.uncounted == {}
    assert abs(counted.total / whole - flops) < 0.02
    assert report(model).flops_share == pytest.approx(counted.total / whole, abs=0.002)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "timm_vit_gated", "deit_small_distilled_patch16_224"],
)
@pytest.mark.parametrize("method", ["tome", "pool"])
def test_closed_costs_agree_with_counting(name, method) -> None:
    model, x = fresh_model(BY_NAME[name]), BY_NAME[name].images(1)
    whole = tokenreduce.count_flops(model, x).total
    patch(model, method, flops=0.7)
    counted = tokenreduce.count_flops(model, x)
    assert report(model).flops_share == pytest.approx(counted.total / whole, rel=0.005)


def test_dynamic_input_sizes_have_their_own_counts() -> None:
    model = fresh_model(BY_NAME["timm_vit_dynamic_size"])
    patch(model, "tome", ratio=0.5)
    for size in ((32, 32), (24, 40), (16, 64)):
        x = torch.randn(1, 3, *size)
        model(x)
        n = size[0] * size[1] // 16
        assert report(model).input_tokens == n and report(model).tokens_left == n // 2
        assert model.forward_intermediates(x, intermediates_only=True)[-1].shape[-2:] == (size[0] // 4, size[1] // 4)
    for size in ((40, 40), (24, 72)):
        with reduced(model, "pool", flops=0.6):
            x = torch.randn(1, 3, *size)
            first = tokenreduce.count_flops(model, x)
            assert tokenreduce.count_flops(model, x) == first, "resolving a budget must not be counted"
            assert report(model).flops_share == pytest.approx(0.6, abs=0.02)
    with reduced(model, "pool", ratio=0.5):
        model(torch.randn(1, 3, 16, 64))
        assert report(model).map.dest.view(4, 16)[0, :2].tolist() == [0, 0]


def test_hybrid_embeddings_are_counted() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64).eval()
    x = torch.zeros(1, 3, 64, 64)
    whole = tokenreduce.count_flops(model, x).total
    patch(model, "pool", flops=0.9)
    assert tokenreduce.count_flops(model, x).total / whole == pytest.approx(0.9, abs=0.02)
