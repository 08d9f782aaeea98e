"""The restated self-attention is the library's own but for the additive logits."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from tokenreduce.patches.transformers._unmasked import BiasedSelfAttention

import tokenreduce

FAMILIES = ("hf_videomae_model", "hf_dpt_model", "hf_vitpose_backbone", "hf_yolos_model")
in_families = pytest.mark.parametrize("name", FAMILIES)


def pairs(name: str, implementation: str):
    """The first layer's self-attention, unpatched and patched, with tokens for it."""
    model = fresh_model(BY_NAME[name])
    model.set_attn_implementation(implementation)
    _, backbone, adapter = tokenreduce.patching.finding.find_backbone(model)
    attention = adapter.layers(backbone)[0].attention.attention
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    yield attention(x)[0], attention, x
    tokenreduce.patch(model, "tome", ratio=0.5)
    yield attention(x)[0], attention, x


@in_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_without_sizes_it_is_the_original(name: str, implementation: str) -> None:
    (before, _, _), (after, attention, x) = pairs(name, implementation)
    assert isinstance(attention, BiasedSelfAttention)
    assert torch.equal(after, before)
    bias = torch.zeros(2, 1, 1, x.shape[1])
    assert torch.allclose(attention(x, bias=bias)[0], before, atol=1e-6)


@in_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_log_sizes_stand_for_repeated_keys(name: str, implementation: str) -> None:
    _, (_, attention, x) = pairs(name, implementation)
    sizes = torch.tensor([1, 3, 1, 2, 1, 1, 4, 1, 1])
    repeated = attention(x.repeat_interleave(sizes, 1))[0][:, sizes.cumsum(0) - 1]
    bias = sizes.log().expand(2, 1, 1, -1)
    assert torch.allclose(attention(x, bias=bias)[0], repeated, atol=1e-6)
