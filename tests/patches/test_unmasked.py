"""The restated self-attention is the library's own but for the additive logits."""

from __future__ import annotations

import pytest
import torch
from backbones import Backbone, fresh_model
from choosing import every_backbone
from tokenreduce.patches.transformers._unmasked import BiasedSelfAttention

import tokenreduce

in_families = every_backbone(lambda row: row.unmasked)


def pairs(backbone: Backbone, implementation: str):
    """The first layer's self-attention, unpatched and patched, with tokens for it."""
    model = fresh_model(backbone)
    _, part, adapter = tokenreduce.patching.finding.find_backbone(model)
    attention = adapter.layers(part)[0].attention.attention
    attention.config._attn_implementation = implementation
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    yield attention(x)[0], attention, x
    tokenreduce.patch(model, "tome", ratio=0.5)
    yield attention(x)[0], attention, x


@in_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_without_sizes_it_is_the_original(backbone: Backbone, implementation: str) -> None:
    (before, _, _), (after, attention, x) = pairs(backbone, implementation)
    assert isinstance(attention, BiasedSelfAttention)
    assert torch.equal(after, before)
    bias = torch.zeros(2, 1, 1, x.shape[1])
    assert torch.allclose(attention(x, bias=bias)[0], before, atol=1e-6)


@in_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_log_sizes_stand_for_repeated_keys(backbone: Backbone, implementation: str) -> None:
    _, (_, attention, x) = pairs(backbone, implementation)
    sizes = torch.tensor([1, 3, 1, 2, 1, 1, 4, 1, 1])
    repeated = attention(x.repeat_interleave(sizes, 1))[0][:, sizes.cumsum(0) - 1]
    bias = sizes.log().expand(2, 1, 1, -1)
    assert torch.allclose(attention(x, bias=bias)[0], repeated, atol=1e-6)
