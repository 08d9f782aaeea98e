"""`LayerTokens` and `Shown`: what a layer shows a reducer, image tokens only."""

from __future__ import annotations

import math

import pytest
import torch
from patches_by_hand import BATCH, COUNT, GRID, merging_map, reduction, tokens
from torch import Tensor

from tokenreduce import InvalidValueError
from tokenreduce.forward.layer_tokens import LayerTokens
from tokenreduce.forward.shown import Shown
from tokenreduce.forward.state import TokenState

HEADS, WIDTH = 2, 4


def heads(seed: int, count: int = COUNT) -> Tensor:
    """Of all tokens, `(B, H, 2 + N + 1, d)`."""
    return torch.randn(BATCH, HEADS, 2 + count + 1, WIDTH, generator=torch.Generator().manual_seed(seed))


def seen(shown: Shown, state: TokenState | None = None, x: Tensor | None = None) -> LayerTokens:
    state = state or TokenState(reduction(method="dsm", follows_origin=True), COUNT, GRID)
    return LayerTokens(state, shown, 1, tokens() if x is None else x)


def test_protected_tokens_are_left_out() -> None:
    shown, x = Shown(), tokens()
    shown.add("keys", heads(1))
    shown.add("values", heads(2))
    found = seen(shown, x=x)
    assert (found.count, found.prefix, found.suffix, found.layer, found.depth, found.grid) == (12, 2, 1, 1, 4, GRID)
    assert torch.equal(found.features, x[:, 2:14])
    assert torch.equal(found.keys, heads(1)[:, :, 2:14]) and torch.equal(found.values, heads(2)[:, :, 2:14])
    assert found.has("keys") and found.has("origin") and found.has("positions") and found.has("grid")
    assert found.origin.shape == (BATCH, 12) and found.positions.shape == (BATCH, 12, 2)
    assert not found.has("queries") and not found.has("attention") and not found.has("pixels")
    assert not found.has("auxiliary_logits")
    with pytest.raises(InvalidValueError, match="queries is not available here"):
        _ = found.queries


def test_mean_keys_with_and_without_their_heads() -> None:
    shown = Shown()
    shown.add_mean_keys(heads(1).requires_grad_())
    assert shown.entries["mean_keys"].shape == (BATCH, 15, WIDTH)
    assert torch.allclose(seen(shown).mean_keys, heads(1).mean(1)[:, 2:14]) and not seen(shown).mean_keys.requires_grad
    shown = Shown(by_head=True)
    shown.add_mean_keys(heads(1))
    assert torch.equal(seen(shown).keys_to_average, heads(1)[:, :, 2:14])
    assert torch.allclose(seen(shown).mean_keys, heads(1).mean(1)[:, 2:14])
    shown.clear()
    assert shown.entries == {} and not seen(shown).has("mean_keys")


def attention(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """The full softmax, row by row; `bias (B, A)` of the keys."""
    out = torch.zeros(BATCH, HEADS, queries.shape[2], keys.shape[2])
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(queries.shape[2]):
                out[b, h, i] = (keys[b, h] @ queries[b, h, i] / math.sqrt(WIDTH) + bias[b]).softmax(0)
    return out


def test_attention_has_sizes_in_it() -> None:
    state = TokenState(reduction(follows_origin=True), COUNT, GRID)
    token_map = merging_map(12, 7, 0)
    state.places.follow(token_map, None)
    state.maps, state.sizes = [token_map], token_map.sizes(None)
    shown = Shown()
    shown.add("queries", heads(1, 7))
    shown.add("keys", heads(2, 7))
    found = seen(shown, state, tokens(count=7))
    bias = torch.zeros(BATCH, 10)
    bias[:, 2:9] = state.sizes.log()
    full = attention(heads(1, 7), heads(2, 7), bias)
    assert torch.allclose(found.attention, full, atol=1e-6)
    assert torch.allclose(found.received_attention, full.sum(2)[..., 2:9], atol=1e-5)
    assert torch.allclose(found.own_attention, full.diagonal(dim1=2, dim2=3)[..., 2:9], atol=1e-6)
    assert torch.allclose(found.class_attention, full[:, :, 0, 2:9].mean(1), atol=1e-6)
    assert found.padding is None and torch.equal(found.sizes, state.sizes) and torch.equal(found.origin, token_map.rep)


def test_attention_is_that_which_the_layer_uses() -> None:
    shown, added = Shown(), torch.randn(BATCH, 1, 1, 15)
    shown.add("queries", heads(1))
    shown.add("keys", heads(2))
    shown.attend = lambda q, k: (q * 2, k + 1, added)
    full = attention(heads(1) * 2, heads(2) + 1, added[:, 0, 0])
    assert torch.allclose(seen(shown).attention, full, atol=1e-6)


def test_padding_is_far_away_of_size_one_and_no_query() -> None:
    valid = torch.ones(BATCH, 15).bool()
    valid[1, 10:14] = False  # the image tokens 8 to 11
    state, shown, x = TokenState(reduction(), COUNT, GRID, valid), Shown(), tokens()
    shown.add("queries", heads(1))
    shown.add("keys", heads(2))
    found = seen(shown, state, x)
    assert torch.equal(found.padding, ~valid[:, 2:14]) and torch.equal(found.sizes, torch.ones(BATCH, 12))
    assert torch.equal(found.features[0], x[0, 2:14]) and torch.equal(found.features[1, :8], x[1, 2:10])
    assert all(torch.equal(found.features[1, i], found.features[1, 8]) for i in range(8, 12))
    assert torch.equal(found.keys[1, :, :8], heads(2)[1, :, 2:10])
    bias = torch.where(valid, 0.0, -math.inf)
    full = attention(heads(1), heads(2), bias)
    full[1, :, 10:14] = 0
    assert torch.allclose(found.received_attention, full.sum(2)[..., 2:14], atol=1e-5)
    assert found.received_attention[1, :, 8:].abs().max() == 0


def test_pixels_are_of_the_input_only() -> None:
    video = torch.arange(2 * 3 * 2 * 4 * 4).float().view(2, 3, 2, 4, 4)
    shown = Shown(video=(video, (1, 2, 2)))
    state = TokenState(reduction(grid=(2, 2, 2), prefix=0, suffix=0), 8, (2, 2, 2))
    found = LayerTokens(state, shown, 0, torch.randn(2, 8, 8))
    assert found.has("pixels") and found.has("frames")
    pixels = found.pixels
    assert pixels.shape == (2, 8, 1, 12)
    first = video[0, :, 0, :2, :2].flatten().sort().values
    assert torch.equal(pixels[0, 0, 0].sort().values, first)
    state.maps = [merging_map(8, 4, 0)]
    assert not LayerTokens(state, shown, 1, torch.randn(2, 4, 8)).has("pixels")


def test_positions_need_a_grid() -> None:
    state = TokenState(reduction(), COUNT, None)
    found = seen(Shown(), state)
    assert not found.has("positions") and not found.has("grid") and found.has("origin")
    assert torch.equal(seen(Shown()).positions[0, 5], torch.tensor([1.0, 1.0]))
