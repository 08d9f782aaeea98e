"""Where attention has rotary embedding, position bias or grouped heads, methods see the attention that layers use."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from torch import nn

from tokenreduce import patch
from tokenreduce.forward import layer_tokens
from tokenreduce.ops import attention

NAMES = [
    "timm_eva",
    "timm_dinov3",
    "timm_rope_mixed",
    "timm_rope_grouped",
    "timm_beit",
    "timm_beit_shared",
    "timm_beit_only_shared",
    "timm_naflex",
    "timm_naflex_padded_rope",
    "timm_naflex_padded_mixed",
    "hf_beit",
    "hf_beit_shared",
    "hf_siglip2_padded",
]


def used_attention(model: nn.Module) -> list[torch.Tensor]:
    """The attention of every layer after softmax, as the library computes it without fused kernels."""
    used: list[torch.Tensor] = []
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
        for module in model.modules():
            if hasattr(module, "k_proj"):
                module.register_forward_hook(lambda m, args, out: used.append(out[1]))
    else:
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda m, args, out: used.append(out))
    return used


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_attention_used(name: str, monkeypatch) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    used, shown = used_attention(model), []
    spied = layer_tokens.image_sources

    def spy(queries, keys, bias, *rest):
        shown.append((queries, keys, bias))
        return spied(queries, keys, bias, *rest)

    monkeypatch.setattr(layer_tokens, "image_sources", spy)
    patch(model, "mctf", r=6)
    with torch.no_grad():
        backbone.outputs(model, backbone.inputs())
    assert len(shown) == len(used) == 4
    for (queries, keys, bias), own in zip(shown, used, strict=True):
        assert torch.allclose(attention.attention_map(queries, keys, bias), own, atol=1e-5)
        first = attention.class_rows(queries, keys, bias, 1)
        assert torch.allclose(first, own[:, :, 0].mean(1), atol=1e-5)
        received, _ = attention.received_and_own(queries, keys, bias)
        assert torch.allclose(received, own.sum(2), atol=1e-4)
