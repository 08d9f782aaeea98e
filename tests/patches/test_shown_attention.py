"""Where attention has rotary embedding, position bias or grouped heads, methods see the attention that layers use."""

from __future__ import annotations

import torch
from backbones import Backbone, fresh_model
from choosing import every_backbone
from torch import nn

from tokenreduce import patch
from tokenreduce.forward import layer_tokens
from tokenreduce.ops import attention
from tokenreduce.patching.finding import find_backbone


def may_differ(row: Backbone) -> bool:
    """Whether attention is more than queries and keys, in layers of tokens."""
    return (row.rotary or row.biased or bool(row.padded)) and not row.map_attention


def used_attention(model: nn.Module) -> list[torch.Tensor]:
    """The attention of every layer after softmax, as the library computes it without fused kernels."""
    used: list[torch.Tensor] = []
    _, part, adapter = find_backbone(model)
    if hasattr(part, "set_attn_implementation"):
        part.set_attn_implementation("eager")
        for module in part.modules():
            if hasattr(module, "k_proj"):
                module.register_forward_hook(lambda m, args, out: used.append(out[1]))
    else:
        for block in adapter.layers(part):
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda m, args, out: used.append(out))
    return used


@every_backbone(may_differ)
def test_statistics_are_those_of_the_attention_used(backbone: Backbone, monkeypatch) -> None:
    model = fresh_model(backbone)
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
