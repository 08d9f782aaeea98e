"""The kernels for CUDA against the PyTorch reference, on a GPU: types, strides, ties, NaN, infinity, limits."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, by_reference, kernel, strided
from test_compiled import WRONG, merges
from torch import Tensor

import tokenreduce
from tokenreduce.ops.native import build_cuda, dispatch
from tokenreduce.reducers.parts.bipartite import match_bipartite


def why_not() -> str:
    gpu = "" if torch.cuda.is_available() else "PyTorch sees no GPU here"
    return gpu or dispatch.load() or dispatch.load_cuda()


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"the CUDA kernels did NOT run: {why_not()}")

FIELDS = ("dest", "rep", "sources")
COUNTS = (2, 3, 17, 64, 130, 197, 255, 256, 257, 300, 577, 1370, 2049)  # up to 256 one block has an image


def exact(n: int, width: int, seed: int, odd: float | None = None, batch: int = 2) -> Tensor:
    """`(B, N, d)` whose directions and products any order of summation finds exactly: ties everywhere. With `odd` one
    row in ten is made of that."""
    g = torch.Generator().manual_seed(seed)
    place = torch.randint(width, (batch, n, 1), generator=g)
    length = 2.0 ** torch.randint(-2, 3, (batch, n, 1), generator=g) * torch.randint(-1, 2, (batch, n, 1), generator=g)
    if odd is not None:
        length = torch.where(torch.rand(length.shape, generator=g) < 0.1, odd, length)
    return torch.zeros(batch, n, width).scatter(2, place, length)


def matches(x: Tensor, keep: int, first: int) -> None:
    """The kernel's map of `x`, which may have strides, is that of the reference."""
    found = kernel("bipartite_match")(x, keep, first)
    expected = by_reference(match_bipartite, x.cpu().float(), keep, first)
    for tensor, field in zip(found, FIELDS, strict=True):
        assert torch.equal(tensor.cpu(), getattr(expected, field)), field


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [None, float("nan"), float("inf")])
def test_ties_and_odd_values_at_the_limits_of_r(n: int, dtype: torch.dtype, odd: float | None) -> None:
    for first in (0, 1):
        sources = (n - first + 1) // 2
        for keep in (n, n - 1, n - sources // 2, n - sources):
            matches(exact(n, 16, n + keep, odd).to(dtype).cuda(), keep, first)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(2, 400),
    st.sampled_from((1, 4, 5, 16, 33, 64, 80, 200, 1024)),
    st.integers(0, 1),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
    STRIDES,
    st.integers(0, 10**6),
)
def test_matching_is_the_reference_with_any_strides(
    n: int, width: int, first: int, share: float, dtype: torch.dtype, strides: str, seed: int
) -> None:
    keep = n - round(share * (n // 2))
    matches(strided(exact(n, width, seed).to(dtype).cuda(), strides), keep, first)


@pytest.mark.parametrize("n", [1, 200, 1370])
def test_equal_tokens_all_go_to_the_first_target(n: int) -> None:
    keep = n - n // 2
    dest, rep, sources = kernel("bipartite_match")(torch.ones(2, n, 64, device="cuda"), keep, 1)
    kept = (n // 2) - (n - keep)
    assert torch.equal(sources.cpu(), torch.arange(1, n, 2).expand(2, -1))
    assert (dest.gather(1, sources) == kept).all()
    x, sizes = torch.randn(2, n + 1, 24, device="cuda"), torch.rand(2, n, device="cuda") + 1
    out, grown, _ = kernel("merge_apply")(x, dest, rep, sources, sizes, 1, 0)
    expected = kernel("merge_apply")(x.cpu(), dest.cpu(), rep.cpu(), sources.cpu(), sizes.cpu(), 1, 0)
    torch.testing.assert_close(out.cpu(), expected[0])
    torch.testing.assert_close(grown.cpu(), expected[1])


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("heads", [None, 6, 9])
def test_matches_are_the_best_and_repeat(n: int, heads: int | None) -> None:
    """Whatever rounding does to near ties: no other choice is better by more than rounding."""
    torch.manual_seed(n)
    fused = torch.randn(2, n, 3, heads or 1, 64, device="cuda").permute(2, 0, 3, 1, 4)[1]
    x = fused if heads else fused[:, 0]
    keep = n - n // 3
    found = kernel("bipartite_match")(x, keep, 0)
    for _ in range(5):
        assert all(map(torch.equal, kernel("bipartite_match")(x, keep, 0), found))
    dest, rep, sources = found
    unit = torch.nn.functional.normalize((x.mean(1) if heads else x).double(), dim=-1)
    scores = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    best = scores.amax(2)
    moved, targets = sources // 2, rep.gather(1, dest.gather(1, sources)) // 2
    taken = scores.flatten(1).gather(1, moved * scores.shape[2] + targets)
    # Tensor cores cut what is below 2^-23 of a sum off: for 64 channels twelve times, in both of two scores.
    assert torch.allclose(taken, best.gather(1, moved), rtol=0, atol=3e-6)
    assert torch.allclose(taken, best.sort(1, descending=True).values[:, : n - keep], rtol=0, atol=3e-6)
    assert torch.equal(dest.gather(1, rep), torch.arange(keep, device="cuda").expand(2, -1))


@settings(deadline=None, max_examples=200)
@given(merges())
def test_merging_is_the_reference_and_repeats(case: tuple[Tensor, Any, Tensor | None, int, int]) -> None:
    x, token_map, sizes, prefix, suffix = case
    fields = [getattr(token_map, field) for field in FIELDS]
    expected = by_reference(token_map.merge, x, sizes, prefix, suffix)
    moved = [tensor.cuda() if tensor is not None else None for tensor in (x, *fields, sizes)]
    found = kernel("merge_apply")(*moved, prefix, suffix)
    out, grown, bias = (tensor.cpu() for tensor in found)
    assert out.dtype == x.dtype and torch.equal(grown, expected[1])
    torch.testing.assert_close(bias, torch.nn.functional.pad(grown.log(), (prefix, suffix))[:, None, None])
    tolerance = 1e-6 if x.dtype.itemsize > 2 else 0.03  # the reference rounds differences to half precision
    torch.testing.assert_close(out, expected[0], rtol=tolerance, atol=tolerance)
    assert torch.equal(out[:, :prefix], x[:, :prefix]) and all(
        map(torch.equal, kernel("merge_apply")(*moved, prefix, suffix), found)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [196, 1369])
def test_matching_and_merging_in_one_call(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, sizes = torch.randn(3, n + 3, 384, device="cuda").to(dtype), torch.rand(3, n, device="cuda") + 1
    keys, keep = torch.randn(3, 6, n + 3, 64, device="cuda").to(dtype), n - n // 3
    out, grown, bias, dest, rep, sources = kernel("bipartite_merge")(x, keys, sizes, keep, 0, 2, 1)
    assert all(map(torch.equal, kernel("bipartite_match")(keys[:, :, 2:-1], keep, 0), (dest, rep, sources)))
    expected = kernel("merge_apply")(*(tensor.cpu() for tensor in (x, dest, rep, sources, sizes)), 2, 1)
    for a, b in zip((out, grown, bias), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_a_graph_replays_what_eager_does() -> None:
    torch.manual_seed(0)
    x, keys = torch.randn(2, 400, 64, device="cuda"), torch.randn(2, 4, 400, 32, device="cuda").half()

    def both() -> tuple[Tensor, ...]:
        return kernel("bipartite_merge")(x, keys, None, 250, 0, 1, 0)

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for _ in range(3):
        x.normal_()
        keys.normal_()
        graph.replay()
        assert all(map(torch.equal, captured, both()))


def test_entries_outside_leave_the_gpu_usable() -> None:
    x = torch.randn(1, 8, 4, device="cuda")
    dest, rep = torch.full((1, 8), 99, device="cuda"), torch.tensor([[0, -5, 2, 77]], device="cuda")
    sources = torch.tensor([[4, 5, -1, 1 << 40]], device="cuda")
    out = kernel("merge_apply")(x, dest, rep, sources, None, 0, 0)[0]
    torch.cuda.synchronize()
    assert out.isfinite().all()


@pytest.mark.parametrize(("name", "arguments", "words"), [case for case in WRONG if case[0] in build_cuda.CUDA])
def test_bad_tensors_are_named(name: str, arguments: tuple[Any, ...], words: str) -> None:
    if "holds" in words:  # the host does not read entries of an index
        return
    moved = [value.cuda() if isinstance(value, Tensor) else value for value in arguments]
    with pytest.raises(RuntimeError, match=words):
        kernel(name)(*moved)


def test_a_patched_model_gives_the_same_with_and_without() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=4).eval().cuda()
    images = torch.randn(2, 3, 224, 224, device="cuda")
    tokenreduce.patch(model, "tome", ratio=0.5)
    with torch.no_grad():
        expected = by_reference(model, images)
        with dispatch.using("cuda"):
            assert dispatch.why_not("bipartite_match", images) == ""
            found = model(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
