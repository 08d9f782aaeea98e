"""Tokens of masked auto-encoding: random subsets, no grid, a decoder that stays as it is."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from transformers import VideoMAEConfig, VideoMAEForPreTraining
from transformers.models.videomae.modeling_videomae import VideoMAELayer, VideoMAESelfAttention
from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer

import tokenreduce
from tokenreduce import patch, report, unpatch


@pytest.mark.parametrize("name", ["hf_vit_mae_model", "hf_vit_mae"])
def test_no_grid_even_where_nothing_is_masked(name: str) -> None:
    refused = tokenreduce.compatible(fresh_model(BY_NAME[name])).refused
    assert "random order" in refused["pool"]


@torch.no_grad()
def test_random_masks_and_the_decoder() -> None:
    backbone = BY_NAME["hf_vit_mae"]
    model = fresh_model(backbone)
    images = backbone.inputs()["pixel_values"]
    whole = model(images)
    patch(model, "tome", ratio=0.5)
    assert all(type(layer) is ViTMAELayer for layer in model.decoder.decoder_layers)
    assert not tokenreduce.patching.finding.reduction_of(model).prop_attn
    reduced = model(images)
    assert reduced.logits.shape == whole.logits.shape
    assert reduced.loss.isfinite()
    assert report(model).tokens_left == 32


@torch.no_grad()
def test_videomae_pretraining_gets_its_visible_tokens_back() -> None:
    config = VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_frames=8,
        tubelet_size=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    torch.manual_seed(0)
    model = VideoMAEForPreTraining(config).eval()
    video, mask = torch.randn(2, 8, 3, 16, 16), torch.zeros(2, 64, dtype=torch.bool)
    mask[:, ::2] = True
    before = model(video, bool_masked_pos=mask)
    patch(model, "tome", ratio=0.5)
    assert all(type(layer) is VideoMAELayer for layer in model.decoder.decoder_layers)
    inner = [layer.attention.attention for layer in model.decoder.decoder_layers]
    assert all(type(attention) is VideoMAESelfAttention for attention in inner)
    after = model(video, bool_masked_pos=mask)
    assert after.logits.shape == before.logits.shape
    assert not torch.equal(after.logits, before.logits)
    assert torch.allclose(after.loss, before.loss, rtol=0.2)
    assert report(model).tokens[-1] == 16
    assert torch.equal(unpatch(model)(video, bool_masked_pos=mask).logits, before.logits)


def test_a_decoder_that_reads_every_place_cannot_do_without_restoring() -> None:
    model = fresh_model(BY_NAME["hf_vit_mae"])
    with pytest.raises(ValueError, match="restore=False leaves no map"):
        patch(model, "tome", ratio=0.5, restore=False)
    patch(model.vit, "tome", ratio=0.5, restore=False)
