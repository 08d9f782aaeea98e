"""What every method must do, whatever it computes: on tensors, without a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenreduce
from tokenreduce.reducers.registry import create

METHODS = tokenreduce.methods()
N, GRID, PREFIX = 24, (4, 6), 1
VIDEO = (4, 2, 3)  # the grid for methods that need one with a time axis
# Largest difference to the same map in fp32, as a part of the largest feature: rounding of the result.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}

every_method = pytest.mark.parametrize("method", METHODS)


def inputs(batch: int = 2, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    attention = torch.randn(batch, 2, PREFIX + N, PREFIX + N, generator=g).softmax(-1)
    heads = {name: torch.randn(batch, 2, N, 8, generator=g) for name in ("keys", "queries", "values")}
    x, pixels = torch.randn(batch, N, 16, generator=g), torch.randn(batch, N, 2, 5, generator=g)
    logits = torch.randn(batch, N, 4, 3, generator=g)
    words = torch.rand(batch, N, generator=g)
    scans = {"scan_output": torch.randn(batch, N, 8, generator=g), "time_step": torch.rand(batch, N, 8, generator=g)}
    shown = {"attention": attention, "text_attention": words, "pixels": pixels, "auxiliary_logits": logits}
    return {"x": x, **shown, **heads, **scans, "crops": in_crops().expand(batch, -1, -1)}


def in_crops() -> torch.Tensor:
    """A small image of 2 x 2 tokens, and two crops of 2 x 4 one above the other, whose rows have ends."""
    small = [(0, y, x) for y in range(2) for x in range(2)]
    crops = [(-1 if x == 4 else 1 + y // 2, y, x) for y in range(4) for x in range(5)]
    return torch.tensor([small + crops])


def plan(method: str, given: dict[str, Any], keep: int | None = 16, **more: Any) -> tokenreduce.TokenMap:
    rest = {name: value for name, value in given.items() if name != "x"}
    grid = VIDEO if "frames" in tokenreduce.describe(method)["needs"] else GRID
    return tokenreduce.plan(given["x"], method, keep=keep, grid=grid, prefix=PREFIX, layer=1, depth=4, **rest, **more)


def same(a: tokenreduce.TokenMap, b: tokenreduce.TokenMap) -> bool:
    x = torch.randn(a.dense().shape[0], a.entered, 5, generator=torch.Generator().manual_seed(9))
    return torch.equal(a.dense(), b.dense()) and torch.equal(a.restore(a.apply(x)), b.restore(b.apply(x)))


@every_method
@pytest.mark.parametrize("keep", [23, 18, 12])
def test_counts_sizes_and_restored_shapes(method, keep) -> None:
    given = inputs()
    token_map = plan(method, given, keep)
    y, sizes = tokenreduce.apply(token_map, given["x"])
    assert token_map.entered == N and y.shape == (2, keep, 16) and sizes.shape == (2, keep)
    assert torch.isfinite(y).all() and (sizes > 0).all()
    assert tokenreduce.restore(token_map, y).shape == (2, N, 16)
    undo = token_map.undo_matrix()
    assert (undo >= 0).all() and torch.allclose(undo.sum(-1), torch.ones(2, N), atol=1e-5)


@every_method
def test_the_same_again_and_alone(method) -> None:
    """Deterministic, and with a count given, an image's map does not depend on the batch around it."""
    given = inputs(3)
    # More rounds of its sharp softmax multiply the last digits, in which products of other sizes may differ.
    options = {"iterations": 1} if method == "expedit" else {}
    together = plan(method, given, **options)
    assert same(together, plan(method, given, **options))
    for i in range(3):
        alone = plan(method, {name: tensor[i : i + 1] for name, tensor in given.items()}, **options)
        assert torch.allclose(together.dense()[i], alone.dense()[0], atol=1e-6)
        assert torch.allclose(together.undo_matrix()[i], alone.undo_matrix()[0], atol=1e-5)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_plans_as_fp32_and_applies_within_rounding(method, dtype) -> None:
    half = {name: tensor.to(dtype) for name, tensor in inputs().items()}
    token_map, exact = plan(method, half), plan(method, {name: tensor.float() for name, tensor in half.items()})
    assert torch.allclose(token_map.dense(), exact.dense(), atol=1e-6), "matching runs in fp32"
    y, reference = token_map.apply(half["x"]), exact.apply(half["x"].float())
    assert y.dtype == dtype
    assert (y.float() - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()


@every_method
def test_sizes_enter_and_leave_finite(method) -> None:
    given = inputs()
    sizes = torch.randint(1, 6, (2, N), generator=torch.Generator().manual_seed(1)).float()
    token_map = plan(method, given, sizes=sizes)
    y, grown = tokenreduce.apply(token_map, given["x"], sizes)
    assert torch.isfinite(y).all() and (grown > 0).all()


@every_method
def test_degenerate_inputs_give_finite_tokens(method) -> None:
    """Zero vectors, identical tokens and uniform attention: no NaN, and identical tokens stay what they are."""
    given = inputs()
    zero = {name: torch.zeros_like(tensor) for name, tensor in given.items()}
    same_everywhere = {name: torch.ones_like(tensor) for name, tensor in given.items()}
    for values in (zero, same_everywhere):
        values["attention"] = torch.full_like(given["attention"], 1 / (PREFIX + N))
        token_map = plan(method, values)
        assert torch.isfinite(token_map.dense()).all() and torch.isfinite(token_map.undo_matrix()).all()
        y = token_map.apply(values["x"])
        assert torch.isfinite(y).all()
        if token_map.divide:
            assert torch.allclose(y, values["x"][:, :16], atol=1e-5)


@every_method
def test_options_are_checked(method) -> None:
    for option, default in tokenreduce.describe(method)["options"].items():
        if isinstance(default, (str, int, float)):
            with pytest.raises((ValueError, TypeError), match=option):
                create(method, {option: object()})
            with pytest.raises((ValueError, TypeError), match=option):
                create(method, {option: "no such value"})


ADAPTIVE = [m for m in METHODS if tokenreduce.describe(m)["adaptive"]]


def easy(given: dict[str, Any]) -> dict[str, Any]:
    """Identical tokens, one of which gets all attention, and of whose class the heads are sure."""
    alike = {name: torch.ones_like(tensor) for name, tensor in given.items()}
    alike["attention"] = torch.zeros_like(given["attention"]).index_fill(3, torch.tensor([PREFIX]), 1.0)
    alike["auxiliary_logits"] = torch.tensor([20.0, 0, 0]).expand_as(given["auxiliary_logits"])
    return alike


@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_method_alone_decides(method) -> None:
    """Without a budget counts follow the data: an easy image keeps fewer tokens than a random one."""
    given = inputs(1)
    counts = []
    for shown in (easy(given), given):
        token_map = plan(method, shown, keep=None)
        assert create(method, {}).least(N) <= token_map.count <= N
        assert torch.isfinite(token_map.apply(shown["x"])).all()
        counts.append(token_map.count)
    assert counts[0] < counts[1]
