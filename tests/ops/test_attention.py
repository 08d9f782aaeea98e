"""What reducers read of the attention: the same as of the whole map, without ever holding it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timms import small_vit

import tokenreduce
from tokenreduce.ops import attention
from tokenreduce.ops.attention import attention_map, received_and_own
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.entries import image_sources


def vectors(n: int, batch: int = 2, heads: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(batch, heads, n, 8, generator=g) for _ in range(2))
    return queries, keys


@pytest.fixture
def references() -> Iterator[None]:
    """The compiled kernel never makes a tile that could be looked at."""
    with dispatch.using("reference"):
        yield


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.integers(0, 10**6))
def test_statistics_are_those_of_the_whole_map(n, tile, biased, seed) -> None:
    """Whether the last tile is full, in part or the only one, and with the logits of sizes."""
    queries, keys = vectors(n, seed=seed)
    bias = torch.rand(2, 1, 1, n, generator=torch.Generator().manual_seed(seed)) if biased else None
    logits = torch.einsum("bhid,bhjd->bhij", queries, keys) / 8**0.5
    whole = (logits + bias if biased else logits).softmax(-1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attention, "TILE", tile)
        with dispatch.using("reference"):
            received, own = received_and_own(queries, keys, bias)
    assert torch.allclose(received, whole.sum(2), atol=1e-5)
    assert torch.allclose(own, torch.stack([whole[:, :, i, i] for i in range(n)], -1), atol=1e-6)
    assert torch.allclose(attention_map(queries, keys, bias), whole, atol=1e-6)


def test_more_tokens_than_a_tile() -> None:
    n = attention.TILE + 7
    queries, keys = vectors(n, batch=1, heads=1)
    received, own = received_and_own(queries, keys)
    whole = attention_map(queries, keys)
    assert torch.allclose(received, whole.sum(2), atol=1e-5)
    assert torch.allclose(own, whole.diagonal(dim1=2, dim2=3), atol=1e-6)


def test_half_precision_is_computed_in_fp32() -> None:
    queries, keys = (t.bfloat16() for t in vectors(9))
    for half, exact in zip(
        received_and_own(queries, keys), received_and_own(queries.float(), keys.float()), strict=True
    ):
        assert half.dtype == torch.float32 and torch.equal(half, exact)


def test_image_entries_leave_out_protected_keys_but_count_their_queries(monkeypatch, references) -> None:
    queries, keys = vectors(12)
    whole, asked = attention_map(queries, keys), []
    spied = attention_map
    monkeypatch.setattr(attention, "attention_map", lambda q, k, b=None: asked.append(q.shape[2]) or spied(q, k, b))
    sources = image_sources(queries, keys, None, 2, slice(3, 11))
    assert torch.allclose(sources["received_attention"](), whole.sum(2)[..., 3:11], atol=1e-5)
    assert torch.allclose(sources["own_attention"](), whole.diagonal(dim1=2, dim2=3)[..., 3:11], atol=1e-6)
    assert asked == [12], "both statistics come from one pass"
    assert torch.allclose(sources["class_attention"](), whole[:, :, :2, 3:11].mean((1, 2)), atol=1e-6)
    assert asked == [12, 2], "class attention takes the rows of the class tokens only"
    assert sources["attention"]().shape == (2, 3, 12, 12)
    assert "class_attention" not in image_sources(queries, keys, None, 0, slice(0, 12))


@pytest.mark.parametrize("method", ["gtp", "mctf"])
def test_a_large_model_never_holds_its_attention(method, monkeypatch, references) -> None:
    """1,157 tokens: every attention computed for the reducer has at most a tile of queries."""
    model, asked = small_vit(img_size=136, depth=2).eval(), []
    spied = attention_map
    monkeypatch.setattr(attention, "attention_map", lambda q, k, b=None: asked.append(q.shape[2]) or spied(q, k, b))
    tokenreduce.patch(model, method, r=[0, 30])
    with torch.no_grad():
        model(torch.randn(1, 3, 136, 136, generator=torch.Generator().manual_seed(0)))
    assert asked == [attention.TILE, 34 * 34 + 1 - attention.TILE]
    assert tokenreduce.report(model).tokens[-1] == 34 * 34 - 30
    assert max(asked) == attention.TILE, "nor does counting the reducer's cost for the report"
