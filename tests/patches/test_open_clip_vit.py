"""OpenCLIP's towers: what pools, what holds tokens, and what is never matched."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from rows.open_clip.vit import POOLER, SMALL, TEXT
from torch import nn

import tokenreduce
from tokenreduce import patch, report, unpatch

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tower(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL | options).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"pool_type": "none"},
        {"attentional_pool": True, **POOLER},
        {"attentional_pool": True, "pool_type": "none", **POOLER},
        {"attentional_pool": "cascade", "output_dim": 32, **POOLER},  # OpenCLIP normalises before these pool
        {"attentional_pool": "parallel", "output_dim": 32, **POOLER},
    ],
)
def test_closed_costs_agree_with_counting(options) -> None:
    model = tower(**options)
    costs = tokenreduce.patching.finding.find_backbone(model)[2].geometry(model).costs
    counted = tokenreduce.count_flops(model, X[:1])
    assert counted.uncounted == {}
    assert costs.macs((64,) * 4, (64,) * 4, 1, "mid") == counted.total


def test_what_reads_tokens_gets_all_of_them() -> None:
    pooled, tokens = patch(tower(output_tokens=True), "tome", ratio=0.5)(X)
    assert pooled.shape == (2, 16) and tokens.shape == (2, 32, 32)
    assert patch(tower(pool_type="none"), "tome", ratio=0.5)(X).shape == (2, 33, 16)
    held = patch(nn.ModuleDict({"visual": tower(output_tokens=True)}), "tome", ratio=0.5)  # a container reads nothing
    assert held["visual"](X)[1].shape == (2, 32, 32)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = tower(output_tokens=True)

    assert patch(Reader(), "tome", ratio=0.5).visual(X)[1].shape == (2, 64, 32)


@pytest.mark.parametrize("options", [{}, {"indices": [1]}, {"indices": [1], "stop_early": True}, {"indices": 2}])
def test_intermediates_are_whole_and_leave_nothing_behind(options) -> None:
    model = patch(tower(), "tome", ratio=0.5)
    expected = model(X)
    maps = model.forward_intermediates(X, **options)["image_intermediates"]
    assert all(m.shape == (2, 32, 8, 8) for m in maps)
    assert torch.equal(model(X), expected)
    assert report(model).tokens_left == 32
    patch(model, "tome", ratio=0.5, restore=False)
    with pytest.raises(ValueError, match="this call returns feature maps"):
        model.forward_intermediates(X, **options)
    assert torch.equal(model(X), expected)


def test_text_towers_are_never_patched() -> None:
    with pytest.raises(ValueError, match="holds no backbone"):
        tokenreduce.compatible(TextTransformer(no_causal_mask=True, **TEXT))
    model = patch(fresh_model(BY_NAME["open_clip_clip"]), "tome", ratio=0.5)
    text = [m for m in model.transformer.modules() if isinstance(m, (ResidualAttentionBlock, nn.MultiheadAttention))]
    assert {type(m) for m in text} == {ResidualAttentionBlock, nn.MultiheadAttention}


@pytest.mark.parametrize("build", [CLIP, CustomTextCLIP])
def test_towers_from_timm_are_timms(build) -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    model = build(16, vision, TEXT).eval()
    images, text = torch.randn(2, 3, 160, 160), torch.arange(8).repeat(2, 1)
    with torch.no_grad():
        whole = model(images, text)
        patch(model, "tome", flops=0.7)
        assert tokenreduce.patching.finding.find_backbone(model)[0] == "visual.trunk"
        reduced = model(images, text)
        assert report(model).tokens_left < 100
        assert not torch.equal(reduced[0], whole[0]) and torch.equal(reduced[1], whole[1])
        maps = model.forward_intermediates(images, image_indices=2)["image_intermediates"]
        assert all(m.shape[2:] == (10, 10) for m in maps)
        assert all(torch.equal(a, b) for a, b in zip(unpatch(model)(images, text), whole, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="scaled cosine attention"):
        patch(tower(scaled_cosine_attn=True), "tome", ratio=0.5)
    with pytest.raises(ValueError, match="shows no values"):
        patch(tower(qk_norm=True), "ats", ratio=0.5)
    model = tower()
    model.set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="gradient checkpointing is on"):
        patch(model, "tome", ratio=0.5)
    model.set_grad_checkpointing(False)
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="attn_mask, k_x and v_x do not fit"):
        model.transformer(torch.randn(2, 65, 32), attn_mask=torch.zeros(65, 65))
    model.train().set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(X).sum().backward()


def test_patch_dropout_takes_the_grid_away() -> None:
    model = patch(tower(patch_dropout=0.5).train(), "tome", ratio=0.5)
    assert model(X).shape == (2, 16)
    assert report(model).input_tokens == 32
    patch(model, "pool", ratio=0.5)
    with pytest.raises(ValueError, match="patch dropout in training takes the grid away"):
        model(X)
