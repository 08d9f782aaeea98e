"""Merging by products, as a GPU does it, equals merging by lists of tokens: here both run on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from backbones import fresh_model
from choosing import SHORT
from torch import Tensor

import tokenreduce
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops import products
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.rows import scatter_rows, scatter_sums, take
from tokenreduce.reducers.parts.bipartite import match_bipartite
from tokenreduce.reducers.parts.bipartition import cost_ranks

HALF = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}


@pytest.fixture
def as_on_gpu(monkeypatch):
    """`as_on_gpu(True)` lets the library take every tensor for one on a GPU; compiled kernels are off."""
    real = products.is_gpu

    def switch(on: bool) -> None:
        monkeypatch.setattr(products, "is_gpu", (lambda x: True) if on else real)

    with dispatch.using("reference"):
        yield switch


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_ranks(score: list[float]) -> list[int]:
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    return [order.index(i) for i in range(len(score))]


def test_ranks_are_those_of_sorting_with_ties() -> None:
    score = numbers(3, 17).mul(2).round()  # many equals, of both signs
    score[0, 3], score[1, 4] = torch.inf, -torch.inf
    assert products.ranks(score).tolist() == [slow_ranks(row) for row in score.tolist()]
    cost = score.abs()
    expected = [slow_ranks([-value for value in row]) for row in cost.tolist()]
    assert cost_ranks(cost, torch.arange(17)).tolist() == expected


def test_rows_are_added_and_taken_alike(as_on_gpu) -> None:
    index = torch.tensor([[0, 2, 2], [1, 1, 1]])
    out, rows, sums, values = numbers(2, 4, 5), numbers(2, 3, 5, seed=1), numbers(2, 4, seed=2), numbers(2, 3, seed=3)
    expected, totals = out.clone(), sums.clone()
    for b in range(2):
        for k, m in enumerate(index[b].tolist()):
            expected[b, m] += rows[b, k]
            totals[b, m] += values[b, k]
    for on in (False, True):
        as_on_gpu(on)
        torch.testing.assert_close(scatter_rows(out.clone(), index, rows), expected)
        torch.testing.assert_close(scatter_sums(sums.clone(), index, values), totals)
        assert torch.equal(take(out, index), torch.stack([out[b][index[b]] for b in range(2)]))


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("first", [0, 1])
def test_a_bipartition_has_the_lists_of_sorting(as_on_gpu, n: int, first: int) -> None:
    metric = numbers(2, 3, n, 8)
    metric[:, :, 4:8] = metric[:, :, :4]  # equal scores
    least = n - (n - first + 1) // 2
    for keep in {n, n - 1, n - 3, least}:
        as_on_gpu(False)
        expected = match_bipartite(metric, keep, first)
        as_on_gpu(True)
        found = match_bipartite(metric, keep, first)
        assert (found.count, found.entered, found.batch) == (keep, n, 2)
        for name in ("dest", "rep", "sources"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        for mass in (None, numbers(2, n).abs()):
            assert torch.equal(found.membership(mass), TokenMap.membership(expected, mass))


def inputs(n: int) -> dict[str, Tensor]:
    heads = {name: numbers(2, 2, n, 8, seed=i) for i, name in enumerate(("keys", "queries", "values"))}
    more = {"pixels": numbers(2, n, 2, 5, seed=5), "auxiliary_logits": numbers(2, n, 4, 3, seed=6)}
    more |= {"scan_output": numbers(2, n, 8, seed=10), "time_step": numbers(2, n, 8, seed=11).abs()}
    return {"x": numbers(2, n, 16, seed=7), "attention": numbers(2, 2, n + 1, n + 1, seed=8).softmax(-1)} | heads | more


@pytest.mark.parametrize("few", [products.FEW, 4])
@pytest.mark.parametrize("method", tokenreduce.methods("encoder"))
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_every_method_merges_the_same(as_on_gpu, monkeypatch, method: str, dtype: torch.dtype, few: int) -> None:
    monkeypatch.setattr(products, "FEW", few)
    given = {name: tensor.to(dtype) for name, tensor in inputs(24).items()}
    x, sizes = given.pop("x"), numbers(2, 24, seed=9).abs().mul(3).ceil()
    grid = (4, 2, 3) if "frames" in tokenreduce.describe(method)["needs"] else (4, 6)
    found = []
    for on in (False, True):
        as_on_gpu(on)
        for known in (None, sizes):
            token_map = tokenreduce.plan(x, method, keep=17, grid=grid, prefix=1, depth=4, sizes=known, **given)
            around = torch.cat([x[:, :1], x, x[:, :2]], 1)
            merged, grown, _ = token_map.merge(around, known, 1, 2)
            found.append((token_map.dense(), merged, grown, token_map.restore(merged, 1, 2)))
    for before, after in zip(found[:2], found[2:], strict=True):
        assert torch.equal(before[0], after[0])  # the same decisions
        for a, b in zip(before[1:], after[1:], strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(b.float(), a.float(), atol=4 * ROUNDING[dtype], rtol=4 * ROUNDING[dtype])


@pytest.mark.parametrize("method", ["tome", "ward"])
def test_products_compile_whole_and_train(as_on_gpu, method: str) -> None:
    torch._dynamo.reset()
    as_on_gpu(True)
    model = tokenreduce.patch(fresh_model(SHORT), method, ratio=0.5).bfloat16()
    images = SHORT.images().bfloat16().requires_grad_()

    def gradient(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        out = forward(images)
        return out, *torch.autograd.grad(out.float().square().sum(), images)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found, expected in zip(gradient(compiled), gradient(model), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_counts_do_not_depend_on_the_device(as_on_gpu) -> None:
    model = tokenreduce.patch(fresh_model(SHORT), "tome", flops=0.7).bfloat16()
    expected = tokenreduce.count_flops(model, SHORT.images().bfloat16())
    as_on_gpu(True)
    assert tokenreduce.count_flops(model, SHORT.images().bfloat16()) == expected
