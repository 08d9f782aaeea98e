from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from backbones import BY_NAME, fresh_model
from timm.layers import LayerNorm
from timm.models.eva import Eva, EvaAttention
from timms import SMALL
from tokenreduce.patches.timm import eva as timm_eva
from tokenreduce.patches.timm.eva import ReducedEvaAttention
from torch.nn import functional as F

from tokenreduce import compatible, patch, report, unpatch
from tokenreduce.forward.marks import mark
from tokenreduce.forward.shown import Shown

X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"scale_norm": False},
        {"scale_norm": True, "qk_norm": True},
        {"scale_norm": False, "gated": True, "rotate_half": True},
    ],
)
def test_restated_attention_is_the_same_and_shows_values(options, fused, monkeypatch) -> None:
    attn = EvaAttention(32, 2, num_prefix_tokens=2, norm_layer=LayerNorm, **options).eval()
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    attn.fused_attn = fused
    x, rope, bias = torch.randn(3, 9, 32), torch.randn(7, 32), torch.randn(3, 1, 1, 9)
    calls = [partial(attn, x, rope=rope, attn_mask=bias), partial(attn, x)]
    expected = [call() for call in calls]
    run = SimpleNamespace(shown=Shown())
    attn.__class__ = ReducedEvaAttention
    mark(attn, None)
    monkeypatch.setattr(timm_eva, "capturing", lambda reduction: run)
    assert all(torch.allclose(call(), out, atol=1e-6) for call, out in zip(calls, expected, strict=True))
    values = F.linear(x, attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])).chunk(3, -1)[2]
    assert torch.equal(run.shown.entries["values"].transpose(1, 2).flatten(2), values)
    monkeypatch.setattr(timm_eva, "capturing", lambda reduction: None)
    assert all(torch.equal(call(), out) for call, out in zip(calls, expected, strict=True))


def test_only_methods_that_read_values_change_the_attention() -> None:
    model = fresh_model(BY_NAME["timm_eva"])
    kinds = lambda: {type(block.attn) for block in model.blocks}  # noqa: E731
    patch(model, "evit", ratio=0.5)
    assert kinds() == {EvaAttention}
    patch(model, "ats", ratio=0.5)
    assert kinds() == {ReducedEvaAttention}
    unpatch(model)
    assert kinds() == {EvaAttention}


def test_tokens_stay_reduced_and_maps_are_whole() -> None:
    model = patch(fresh_model(BY_NAME["timm_dinov3_tokens"]), "tome", ratio=0.5)
    with torch.no_grad():
        tokens = model.forward_features(X)
        final, maps = model.forward_intermediates(X, indices=[0, 3])
        early = model.forward_intermediates(X, indices=[1], stop_early=True, intermediates_only=True)
        pairs = model.forward_intermediates(X, indices=1, return_prefix_tokens=True, intermediates_only=True)
        assert torch.equal(model.forward_features(X), tokens)
    assert tokens.shape == (2, 4 + 32, 32) and final.shape == (2, 4 + 64, 32)
    assert [m.shape for m in (*maps, *early)] == [(2, 32, 8, 8)] * 3
    assert pairs[0][1].shape == (2, 4, 32)
    assert torch.allclose(final[:, :4], tokens[:, :4], atol=1e-6)  # what collects does not change what is computed


@pytest.mark.parametrize("rope_type", ["cat", "mixed"])
def test_patch_dropout_in_training(rope_type) -> None:
    model = Eva(**SMALL, use_rot_pos_emb=True, rope_type=rope_type, attn_type="rope", patch_drop_rate=0.25).train()
    patch(model, "tome", ratio=0.5)
    model(X).square().mean().backward()
    assert report(model).tokens_left == 24
    patch(model, "dsm", ratio=0.5)
    with pytest.raises(ValueError, match="grid"):
        model(X)


def test_other_image_sizes() -> None:
    model = patch(fresh_model(BY_NAME["timm_rope_grouped"]), "tome", ratio=0.5)
    with torch.no_grad():
        assert model.forward_intermediates(torch.randn(2, 3, 24, 40), intermediates_only=True)[-1].shape[2:] == (6, 10)
        model(torch.randn(1, 3, 24, 40))
    assert report(model).tokens_left == 30


@pytest.mark.parametrize("mask", [{"is_causal": True}, {"attn_mask": torch.zeros(65, 65)}])
def test_masks_are_refused(mask) -> None:
    model = patch(fresh_model(BY_NAME["timm_eva"]), "tome", ratio=0.5)
    with pytest.raises(ValueError, match="do not fit a reduced model"):
        model(X, **mask)
    assert model(X).isfinite().all()


class OtherEva(Eva):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x).flip(1)


def test_models_that_are_refused() -> None:
    checkpointed, replaced, odd = (Eva(**SMALL) for _ in range(3))
    checkpointed.set_grad_checkpointing()
    replaced.forward_intermediates = print
    odd.blocks[1].attn = torch.nn.Identity()
    for model, reason in (
        (checkpointed, "gradient checkpointing"),
        (replaced, "forward_intermediates was replaced"),
        (odd, "its attention is Identity"),
        (OtherEva(**SMALL), "forward_features of its own"),
    ):
        with pytest.raises(ValueError, match=reason):
            patch(model, "tome", ratio=0.5)


def test_values_of_grouped_attention_are_refused() -> None:
    assert "fewer heads" in compatible(fresh_model(BY_NAME["timm_rope_grouped"])).refused["ats"]
