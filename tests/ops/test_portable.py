"""Simpler operators for other runtimes do what those they stand for do, and sorting for ONNX is stable on its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import fresh_model
from choosing import SHORT
from torch import Tensor, nn

from tokenreduce import patch
from tokenreduce.ops import order
from tokenreduce.ops.portable import portable

pytestmark = pytest.mark.filterwarnings("ignore")
REFUSED = ("sort", "scatter_reduce", "diagonal", "new_ones", "new_zeros", "new_full", "__and__", "__or__")
REFUSED += ("zeros", "ones", "full_like", "where.Scalar", "clamp_min", "isinf", "isneginf")


class Only(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def ties(*shape: int) -> Tensor:
    """Few values, infinities among them, so that most have equals."""
    values = torch.tensor([-torch.inf, -1.0, 0.0, -0.0, 2.0, torch.inf])
    return values[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(0))]


def reduced(reduce: str) -> Any:
    return lambda x: x[..., :4].scatter_reduce(2, (x.abs().clamp(max=3)).long(), x, reduce)


FUNCTIONS = {
    "stable argsort": lambda x: x.argsort(dim=1, stable=True),
    "stable argsort, descending": lambda x: x.argsort(dim=2, descending=True, stable=True),
    "sort": lambda x: x.sort(1).values,
    "stable sort, descending": lambda x: torch.sort(x, dim=0, descending=True, stable=True),
    "argsort of different numbers": lambda x: x.cumsum(2).nan_to_num(9).sigmoid().argsort(dim=2, stable=True),
    "minima of groups": reduced("amin"),
    "maxima of groups": reduced("amax"),
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "diagonals": lambda x: (x.diagonal(1, 1, 2), x.diagonal(-2, 0, 2)),
    "new": lambda x: (x.new_ones(2), x.new_zeros((2, 3)), x.new_full((1,), 7), x.new_ones(2, dtype=torch.long)),
    "zeros and ones": lambda x: (
        torch.zeros(2, 3, dtype=torch.long),
        torch.ones(2) + torch.zeros(2),
        torch.zeros_like(x),
        torch.ones_like(x, dtype=torch.bool),
        torch.full_like(x > 0, 3, dtype=torch.long),
    ),
    "numbers": lambda x: (torch.where(x > 0, x, 7), torch.where(x > 0, -torch.inf, x), x.clamp_min(1)),
    "whole numbers": lambda x: ((x > 0).long().clamp_min(1), torch.where(x > 0, (x > 1).long(), 0.5)),
    "gathered truths": lambda x: (x > 0).gather(1, x.abs().clamp(max=3).long()),
    "counts": lambda x: ((x > 0).sum(1), (x > 0).sum((0, 2), keepdim=True), x.abs().clamp(max=3).sum(-1)),
    "infinities": lambda x: (x.isinf(), x.isneginf()),
    "bits": lambda x: ((x > 0) & (x < 2), (x > 0) | (x < 0), ~(x > 0), x.sign().long() & 3, (x > 0).long() | ~2),
}


def listed(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_values(name: str) -> None:
    x = ties(4, 5, 7)
    program = portable(torch.export.export(Only(FUNCTIONS[name]), (x,)))
    found = listed(program.module()(x))
    for here, there in zip(listed(FUNCTIONS[name](x)), found, strict=True):
        assert here.dtype == there.dtype and torch.equal(here, there)


def names(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("method", ["tome", "kmeans", "tofu"])
def test_programs_of_methods(method: str) -> None:
    model, x = patch(fresh_model(SHORT), method, ratio=0.5), SHORT.images(2)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        simpler = portable(program)
        assert (simpler.module()(x) - model(x)).abs().max() < 1e-5
    assert any(word in name for name in names(program) for word in ("sort", "scatter_reduce"))
    assert not [name for name in names(simpler) if any(word in name for word in REFUSED)]


def test_what_has_no_simpler_operators_is_refused() -> None:
    program = torch.export.export(Only(reduced("sum")), (ties(2, 3, 4),))
    with pytest.raises(ValueError, match=r"scatter_reduce\('sum', include_self=True\); minima and maxima"):
        portable(program)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_sorting_for_onnx_needs_no_stable_sort(dim: int, descending: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the last of equals comes first, as in OpenVINO."""
    sort = Tensor.sort

    def unstable(x: Tensor, dim: int, descending: bool = False) -> Any:
        back = sort(x.flip(dim), dim=dim, descending=descending, stable=True)
        return torch.return_types.sort((back.values, x.shape[dim] - 1 - back.indices))

    x = ties(4, 5, 7)
    expected = x.argsort(dim=dim, descending=descending, stable=True)
    monkeypatch.setattr(order, "to_onnx", lambda: True)
    monkeypatch.setattr(Tensor, "sort", unstable)
    assert torch.equal(order.stable_order(x, dim, descending), expected)
