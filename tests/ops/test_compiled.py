"""The compiled kernels against the PyTorch references: shapes, types, strides, ties, NaN and infinity, bad tensors."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, FIELDS, STRIDES, best_matches, by_reference, exact_rows, kernel, same, strided
from torch import Tensor

import tokenreduce
from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.parts.ward_rounds import merge_in_rounds, round_counts
from tokenreduce.reducers.registry import lookup
from tokenreduce.reducers.tokens import Tokens

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


@settings(deadline=None, max_examples=300)
@given(exact_rows(), st.integers(0, 1), st.floats(0, 1), st.sampled_from(DTYPES), STRIDES)
def test_matching_is_the_reference_with_ties_and_odd_values(
    x: Tensor, first: int, share: float, dtype: torch.dtype, strides: str
) -> None:
    n = x.shape[1]
    keep = n - round(share * (n // 2))
    x = strided(x.to(dtype), strides)
    expected = by_reference(match_bipartite, x.float(), keep, first)
    same(match_bipartite(x, keep, first), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 300), st.integers(1, 130), st.integers(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_matches_are_the_best(n: int, width: int, first: int, share: float, seed: int) -> None:
    x = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed))
    keep = n - round(share * (n // 2))
    found = match_bipartite(x, keep, first)
    best_matches(found, x, keep, first)


def test_keys_of_heads_are_averaged() -> None:
    keys = torch.randn(2, 197, 3, 6, 64).permute(2, 0, 3, 1, 4)[1]  # as they come out of a fused projection
    found = kernel("bipartite_match")(keys, 150, 1)
    expected = by_reference(match_bipartite, keys.mean(1), 150, 1)
    for tensor, field in zip(found, FIELDS, strict=True):
        assert torch.equal(tensor, getattr(expected, field))


@settings(deadline=None, max_examples=100)
@given(exact_rows(), st.booleans(), st.integers(0, 3), st.sampled_from((0.1, 0.4, 0.8)), st.integers(0, 10**6))
def test_rounds_are_the_reference_with_ties(x: Tensor, sized: bool, prefix: int, share: float, seed: int) -> None:
    x, n = torch.nan_to_num(x, nan=1, posinf=1), x.shape[1]
    g = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(0, 3, x.shape[:2], generator=g) if sized else None
    counts = round_counts(n, max(1, n - round(share * n)), 3)[:1]  # after one round means need not be exact
    if not counts:
        return
    unit = torch.nn.functional.normalize(x, dim=-1)
    expected = by_reference(merge_in_rounds, unit, sizes, counts, prefix % 2)
    found = kernel("ward_match")(x, sizes, None, x.shape[-1], counts, prefix % 2)
    same(TokenMap(counts[-1], dest=found[0], rep=found[1], sources=found[2]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [40, 96, 384])
def test_ward_makes_clusters_as_good_as_the_reference(dtype: torch.dtype, channels: int) -> None:
    torch.manual_seed(0)
    x, sizes = torch.randn(3, 197, channels).to(dtype), torch.randint(1, 4, (3, 197)).float()
    tokens = Tokens(x, sizes, {}, None, 1, 0, 0, 12, None)
    ward = lookup("ward")()
    unit = torch.nn.functional.normalize(x.float(), dim=-1)

    def error(token_map: TokenMap) -> Tensor:
        moved = unit - token_map.restore(token_map.apply(unit, sizes))
        return (sizes[..., None] * moved.square()).sum()

    found, expected = ward.plan(tokens, 100), by_reference(ward.plan, tokens, 100)
    assert (found.dest == expected.dest).float().mean() > 0.98
    torch.testing.assert_close(error(found), error(expected), rtol=2e-3, atol=0)


@st.composite
def merges(draw: Any) -> tuple[Tensor, TokenMap, Tensor | None, int, int]:
    batch, n, width = draw(st.integers(0, 3)), draw(st.integers(2, 40)), draw(st.sampled_from((1, 7, 64)))
    prefix, suffix = draw(st.sampled_from((0, 1, 5))), draw(st.sampled_from((0, 3)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    keep = draw(st.integers(n - n // 2, n))
    token_map = by_reference(match_bipartite, torch.randn(batch, n, 4, generator=g), keep)
    sizes = torch.randint(1, 9, (batch, n + 2), generator=g).float()[:, 1:-1] if draw(st.booleans()) else None
    x = torch.randn(batch, prefix + n + suffix, width, generator=g)
    return strided(x.to(draw(st.sampled_from(DTYPES))), draw(STRIDES)), token_map, sizes, prefix, suffix


@settings(deadline=None, max_examples=200)
@given(merges())
def test_merging_is_the_reference(case: tuple[Tensor, TokenMap, Tensor | None, int, int]) -> None:
    x, token_map, sizes, prefix, suffix = case
    out, grown, bias = token_map.merge(x, sizes, prefix, suffix)
    expected = by_reference(token_map.merge, x, sizes, prefix, suffix)
    assert out.dtype == x.dtype and torch.equal(grown, expected[1])
    torch.testing.assert_close(bias, torch.nn.functional.pad(grown.log(), (prefix, suffix))[:, None, None])
    tolerance = 1e-6 if x.dtype.itemsize > 2 else 0.03  # the reference rounds differences to half precision
    torch.testing.assert_close(out, expected[0], rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=200)
@given(merges())
def test_restoring_a_change_is_the_reference(case: tuple[Tensor, TokenMap, Tensor | None, int, int]) -> None:
    before, token_map, sizes, prefix, suffix = case
    after = token_map.apply(before, sizes, prefix, suffix)
    arguments = ("delta", after * 2, [token_map], [Around(before, after)], prefix, suffix)
    expected = by_reference(restore_tokens, *arguments)
    tolerance = 1e-5 if before.dtype.itemsize > 2 else 0.05
    torch.testing.assert_close(restore_tokens(*arguments), expected, rtol=tolerance, atol=tolerance)
    mixed = ("delta", after.double() * 2, *arguments[2:])
    torch.testing.assert_close(restore_tokens(*mixed), by_reference(restore_tokens, *mixed))
    copied = kernel("restore_apply")(after, token_map.dest, None, None, prefix, suffix)
    assert torch.equal(copied, token_map.restore(after, prefix, suffix))


@pytest.mark.parametrize("sized", [False, True])
def test_gradients_of_merging_are_those_of_the_reference(sized: bool) -> None:
    torch.manual_seed(0)
    token_map = match_bipartite(torch.randn(2, 9, 4), 5)
    sizes = torch.randint(1, 4, (2, 9)).float() if sized else None
    if sizes is not None:
        sizes[0] = 0  # padding
    x = torch.randn(2, 12, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 8, 6, dtype=torch.float64)
    grads = []
    for choice in ("cpu", "reference"):
        with dispatch.using(choice):
            out = token_map.merge(x, sizes, 2, 1)[0]
        grads.append(torch.autograd.grad((out * weight).sum(), x)[0])
    torch.testing.assert_close(*grads)
    assert torch.autograd.gradcheck(lambda x: token_map.merge(x, sizes, 2, 1)[0], x, atol=1e-4, rtol=1e-3)


X, DEST, REP, SOURCES = (
    torch.zeros(1, 4, 8),
    torch.tensor([[0, 1, 2, 0]]),
    torch.tensor([[0, 1, 2]]),
    torch.tensor([[3]]),
)
HEADS, BIAS = X[:, None], torch.zeros(1, 1, 1, 4)
WRONG = [
    ("attention_statistics", (X, HEADS, None), "queries"),
    ("attention_statistics", (HEADS.long(), HEADS.long(), None), "queries"),
    ("attention_statistics", (HEADS, X, None), "keys"),
    ("attention_statistics", (HEADS, HEADS[:, :, :3], None), "keys"),
    ("attention_statistics", (HEADS, HEADS[..., :7], None), "keys"),
    ("attention_statistics", (HEADS, HEADS.double(), None), "keys must have the type of queries"),
    ("attention_statistics", (HEADS, HEADS, BIAS[0]), "bias"),
    ("attention_statistics", (HEADS, HEADS, BIAS[..., :3]), "bias"),
    ("attention_statistics", (HEADS, HEADS, BIAS.expand(1, 1, 4, 4)), "bias"),
    ("attention_statistics", (HEADS, HEADS, BIAS.double()), "bias must be float32"),
    ("pitome_energy", (X[0], 0.5, 1.0, True), "metric"),
    ("pitome_energy", (HEADS, 0.5, 1.0, True), "metric"),
    ("pitome_energy", (X.long(), 0.5, 1.0, True), "metric"),
    ("bipartite_match", (X[0], 3, 0), "metric"),
    ("bipartite_match", (X.long(), 3, 0), "metric"),
    ("bipartite_match", (X, 1, 0), "keep"),
    ("bipartite_match", (X, 5, 0), "keep"),
    ("bipartite_match", (X, 3, 2), "first"),
    ("bipartite_merge", (X, X[:, :3], None, 3, 0, 0, 0), "x has shape"),
    ("bipartite_merge", (X, X.expand(2, -1, -1), None, 3, 0, 0, 0), "x has shape"),
    ("bipartite_merge", (X, X, None, 5, 0, 0, 0), "keep names 5 of 4 tokens"),
    ("bipartite_merge", (X, X, None, -1, 0, 0, 0), "keep names -1 of 4 tokens"),
    ("bipartite_merge", (X, X, None, 1, 0, 0, 0), "keep is 1"),
    ("bipartite_merge", (X, X[0], None, 3, 0, 0, 0), "metric"),
    ("ward_match", (X, torch.ones(1, 3), None, 8, [3], 0), "sizes"),
    ("ward_match", (X, torch.ones(1, 4).long(), None, 8, [3], 0), "sizes"),
    ("ward_match", (X, None, torch.ones(3), 4, [3], 0), "signs"),
    ("ward_match", (X, None, None, 4, [3], 0), "signs"),
    ("ward_match", (X, None, None, 9, [3], 0), "width"),
    ("ward_match", (X, None, None, 8, [3, 0], 0), "keep"),
    ("merge_apply", (X, DEST + 1, REP, SOURCES, None, 0, 0), "dest holds 3"),
    ("merge_apply", (X, DEST, REP - 1, SOURCES, None, 0, 0), "rep holds -1"),
    ("merge_apply", (X, DEST, REP, SOURCES + 1, None, 0, 0), "sources holds 4"),
    ("merge_apply", (X, DEST, torch.zeros(1, 5).long(), SOURCES, None, 0, 0), "rep names 5 of 4 tokens"),
    ("size_bias", (torch.ones(4), 0, 0), "sizes"),
    ("size_bias", (torch.ones(1, 4), -1, 0), "prefix"),
    ("merge_apply", (X, DEST, REP, SOURCES.int(), None, 0, 0), "sources must be int64"),
    ("merge_apply", (X, DEST, REP, SOURCES, torch.ones(4), 0, 0), "sizes"),
    ("merge_apply", (X, DEST, REP, SOURCES, None, 1, 0), "dest"),
    ("merge_apply", (X, DEST, REP, SOURCES, None, 4, 1), "x has 4 tokens"),
    ("restore_apply", (X[:, :3], DEST + 9, None, None, 0, 0), "dest holds 9"),
    ("restore_apply", (X[:, :3], DEST, X, None, 0, 0), "before and after"),
    ("restore_apply", (X[:, :3], DEST, X[:, :3], X[:, :3], 0, 0), "before"),
    ("restore_apply", (X[:, :3], DEST, X, X, 0, 0), "after"),
    ("restore_apply", (X[:, :3], DEST, X.double(), X[:, :3], 0, 0), "before"),
    ("krige_apply", (X[:, :3], DEST, X, X, 0, 0, 16, 2.0, 0.01, 1e-6), "after"),
    ("krige_apply", (X[:, :3], DEST, X, X[:, :3], 0, 0, 0, 2.0, 0.01, 1e-6), "nearest is 0"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), WRONG)
def test_bad_tensors_are_named(name: str, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        kernel(name)(*arguments)


def test_sizes_of_zero_are_padding() -> None:
    """A cluster of padding has no size, and no NaN comes of it."""
    x, sizes = torch.randn(1, 8, 4), torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]])
    dest, rep, sources = kernel("ward_match")(x, sizes, None, 4, [4, 2], 0)
    out, grown, _ = kernel("merge_apply")(x, dest, rep, sources, sizes, 0, 0)
    assert out.isfinite().all() and grown.sum() == 3
    bias = kernel("size_bias")(sizes, 1, 2)
    assert torch.equal(bias, torch.nn.functional.pad(sizes.log(), (1, 2))[:, None, None])


def test_choices() -> None:
    x = torch.zeros(1, 4, 8)
    assert dispatch.choose("merge_apply", x) is not None
    assert dispatch.choose("merge_apply", x.to("meta")) is None
    assert dispatch.why_not("restore_apply", x.clone().requires_grad_()) == "it has no backward"
    with dispatch.using("reference"):
        assert dispatch.choose("merge_apply", x) is None
    with dispatch.using("cpu"), pytest.raises(ValueError, match=r"merge_apply is forced.*meta"):
        dispatch.choose("merge_apply", x.to("meta"))
    with pytest.raises(ValueError, match="did you mean 'reference'"), dispatch.using("referenc"):
        pass
    assert [row["kernel"] for row in dispatch.status()] == list(dispatch.KERNELS)


def test_a_patched_model_gives_the_same_with_and_without() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=4).eval()
    images = torch.randn(2, 3, 64, 64)
    for method in ("tome", "ward", "dsm", "tofu"):
        tokenreduce.patch(model, method, ratio=0.5)
        with torch.no_grad():
            found, expected = model(images), by_reference(model, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_forced_kernels_leave_counting_and_exporting_alone() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=4).eval()
    images = torch.randn(2, 3, 64, 64)
    with dispatch.using("cpu"), torch.no_grad():
        tokenreduce.patch(model, "tome", flops=0.8)
        expected = model(images)
        program = torch.export.export(model, (images,))
        traced = torch.jit.trace(model, images)
    for found in (program.module()(images), traced(images)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
