"""In the interpreter `class_rows` is attention; `fuse_rest`, `fuse_attended` and `merge_fused` are `evit`: its map, its
merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, by_reference
from layers import Layer, kernels_asked_for
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.attention import class_rows
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton.fuse import AT_ONCE
from tokenreduce.reducers.methods.evit import EViT
from tokenreduce.reducers.tokens import Tokens

TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def attended(queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int) -> Tensor:
    """By the operator, which is the reference in fp32."""
    with dispatch.using("triton"):
        found = class_rows(queries, keys, bias, class_tokens)
    assert found.dtype == torch.float32
    expected = by_reference(class_rows, queries, keys, bias, class_tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    return found


def fused(n: int, d: int, dtype: torch.dtype, heads: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys as views of one projection's output."""
    qkv = torch.randn(2, n, 3, heads, d, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return qkv.permute(2, 0, 3, 1, 4).unbind()[:2]


def biases(n: int) -> list[Tensor | None]:
    """None, of each image, of all, strided, and with keys of size 0."""
    sizes = torch.randint(1, 9, (2, n), generator=torch.Generator().manual_seed(n)).float()
    logs = sizes.log()[:, None, None]
    masked = logs.masked_fill(torch.arange(n) % 3 == 1, -torch.inf)
    return [None, logs, logs[:1], logs.repeat_interleave(2, -1)[..., ::2], masked]


@pytest.mark.interpreted
@pytest.mark.parametrize("class_tokens", [1, 2, 3])
@pytest.mark.parametrize("n", [3, 127, 128, 129, 255, 256, 257, 300])
def test_class_attention(n: int, class_tokens: int) -> None:
    for bias in biases(n):
        attended(*fused(n, 16, torch.float16), bias, class_tokens)


@pytest.mark.interpreted
@pytest.mark.parametrize("d", [1, 7, 40, 64, 72, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_attention_by_heads_of_any_width_and_type(d: int, dtype: torch.dtype) -> None:
    queries, keys = fused(33, d, dtype)
    found = attended(queries, keys, None, 1)
    channels_first = keys.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(attended(queries[:, :, :1], channels_first, None, 1), found)


@pytest.mark.interpreted
def test_one_token_has_all_attention() -> None:
    assert torch.equal(attended(*fused(1, 8, torch.float32), None, 1), torch.ones(2, 1))


@pytest.mark.interpreted
@pytest.mark.parametrize("place", [0, 5, 140])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_class_attention_of_nan_and_infinity_and_of_no_key(odd: float, place: int) -> None:
    queries, keys = fused(150, 16, torch.float32)
    clean = attended(queries, keys, None, 1)
    keys[1, 0, place, 3] = odd
    assert torch.equal(attended(queries, keys, None, 1)[0], clean[0])
    bias = torch.zeros(2, 1, 1, 150)
    bias[0] = -torch.inf
    assert attended(queries, keys, bias, 1)[0].isnan().all()


def planned(score: Tensor, sizes: Tensor | None, keep: int, normalise: bool = True) -> tuple[TokenMap, TokenMap]:
    """By the operator and by the reference; they are the same but for the order of `sources`."""
    tokens, evit = (
        Tokens(score[..., None], sizes, {"class_attention": lambda: score}),
        EViT(normalise=normalise, inherit=normalise),
    )
    with dispatch.using("triton"):
        found = evit.plan(tokens, keep)
    expected = by_reference(evit.plan, tokens, keep)
    for name in ("dest", "rep", "weight", "size_weight"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
    # The operator gives them in ascending order, the reference by score: all join one output.
    assert torch.equal(found.sources, expected.sources.sort(1).values)  # type: ignore[arg-type, union-attr]
    if not normalise:
        torch.testing.assert_close(found.gain, expected.gain, equal_nan=True)
    return found, expected


@st.composite
def scores(draw: Any) -> Tensor:
    """Few different numbers, so that most are ties; both zeros, NaN and infinity among them."""
    batch, n = draw(st.integers(0, 3)), draw(st.integers(2, 80))
    values = draw(st.sampled_from(((0.0, 0.25, 0.5), (0.0, -0.0), (0.1, torch.nan), (-1.0, 0.5, torch.inf, 1e-20))))
    index = torch.randint(len(values), (batch, n), generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    return torch.tensor(values)[index]


@pytest.mark.interpreted
@settings(deadline=None, max_examples=60)
@given(scores(), st.booleans(), st.floats(0, 1), st.booleans())
def test_maps_with_ties_and_odd_scores(score: Tensor, sized: bool, share: float, normalise: bool) -> None:
    batch, n = score.shape
    sizes = torch.arange(1.0, n + 1).expand(batch, -1) if sized else None
    planned(score, sizes, 2 + round(share * (n - 2)), normalise)


@pytest.mark.interpreted
@pytest.mark.parametrize("layer", [
    Layer(), Layer(sized=False, dtype=torch.float16), Layer(250, prefix=5, dtype=torch.bfloat16, heads=6),
    Layer(300, 2, 3, heads=16, class_tokens=2), Layer(17, dtype=torch.float64, heads=1), Layer(2),
])  # fmt: skip
@pytest.mark.parametrize("normalise", [False, True])
def test_maps_by_attention_that_is_computed_on_the_way(layer: Layer, normalise: bool) -> None:
    evit, tokens = EViT(normalise=normalise, inherit=normalise), layer.tokens()
    for keep in {2, layer.n // 2 + 1, layer.n}:
        with kernels_asked_for() as asked, dispatch.using("triton"):
            found = evit.plan(tokens, keep)
        assert asked == ["fuse_attended"]
        expected = by_reference(evit.plan, tokens, keep)
        assert torch.equal(found.dest, expected.dest) and torch.equal(found.rep, expected.rep)  # type: ignore[arg-type]
        assert torch.equal(found.sources, expected.sources.sort(1).values)  # type: ignore[arg-type, union-attr]
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-12)
        if not normalise:
            torch.testing.assert_close(found.gain, expected.gain)


@pytest.mark.interpreted
def test_images_whose_attention_is_no_number_leave_others_right() -> None:
    layer = Layer(50)
    with dispatch.using("triton"):
        clean = EViT().plan(layer.tokens(), 20)
        layer.keys[1, 0, 9, 3] = torch.nan
        found = EViT().plan(layer.tokens(), 20)
    assert torch.equal(found.dest[0], clean.dest[0])  # type: ignore[index]
    assert torch.equal(found.rep, by_reference(EViT().plan, layer.tokens(), 20).rep)  # type: ignore[arg-type]


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [2, 16, 17, 255, 256, 257, 300, 513])
def test_maps_of_any_number_of_tokens(n: int) -> None:
    score = torch.rand(2, n, generator=torch.Generator().manual_seed(n))
    for keep in {2, n // 2 + 1, n}:
        planned(score, None, keep)
    planned(score.repeat_interleave(2, 1)[:, ::2], torch.ones(1, n).expand(2, -1), n // 2 + 1, normalise=False)


@pytest.mark.interpreted
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("prefix", "suffix", "width"), [(0, 0, 5), (1, 0, 48), (2, 3, 192), (1, 0, 300)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merging(dtype: torch.dtype, prefix: int, suffix: int, width: int, sized: bool) -> None:
    for n, keep in ((2, 2), (60, 3), (60, 30), (60, 59), (270, 268 - 3 * AT_ONCE)):
        g = torch.Generator().manual_seed(n + keep)
        score, x = torch.rand(2, n, generator=g), torch.randn(2, prefix + n + suffix, width, generator=g).to(dtype)
        sizes = torch.randint(1, 5, (2, n), generator=g).float() if sized else None
        token_map, expected = planned(score, sizes, keep)
        with dispatch.using("triton"):
            out, grown, bias = token_map.merge(x, sizes, prefix, suffix)
        exact, grown_sizes, _ = by_reference(expected.merge, x.double(), sizes, prefix, suffix)
        torch.testing.assert_close(out.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert torch.equal(grown, grown_sizes) and out.dtype == dtype
        logs = torch.nn.functional.pad(grown.log(), (prefix, suffix))[:, None, None]
        assert bias is not None
        torch.testing.assert_close(bias, logs)


@pytest.mark.interpreted
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_nan_and_infinity_of_a_token_stay_in_its_output(odd: float) -> None:
    score = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 52, 24, generator=torch.Generator().manual_seed(0))
    token_map, _ = planned(score, None, 20)
    with dispatch.using("triton"):
        expected = token_map.merge(x, None, 1, 1)[0]
        for place in range(52):
            strange = x.clone()
            strange[1, place, 5] = odd
            out = token_map.merge(strange, None, 1, 1)[0]
            protected = {0: 0, 51: 21}
            at = protected[place] if place in protected else 1 + int(token_map.dest[1, place - 1])  # type: ignore[index]
            assert not out[1, at, 5].isfinite()
            out[1, at, 5] = expected[1, at, 5]
            assert torch.equal(out, expected)
