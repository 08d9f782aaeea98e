"""Exported models in OpenVINO: no graph has what OpenVINO computes wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from backbones import fresh_model
from choosing import SHORT, exportable, main_row, one_of_each_kind
from torch import Tensor, fx, nn
from transforming import Outputs

import tokenreduce
from tokenreduce import patch

aten = torch.ops.aten
SUMS = (aten.sum.dim_IntList, aten.mean.dim)
ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
METHODS = [method for method in tokenreduce.methods("encoder") if exportable(method) and SHORT.fits(method)]
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
EVERY_DAY = {"mctf", "topk", "pitome", "dtop", *one_of_each_kind()}


def nodes(module: nn.Module) -> Iterator[fx.Node]:
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield from inner.graph.nodes


def miscomputed(module: nn.Module) -> list[fx.Node]:
    """What OpenVINO 2026.4 computes wrongly, or dies of."""
    return [node for node in nodes(module) if expands_nothing(node) or is_lost(node)]


def expands_nothing(node: fx.Node) -> bool:
    """The division by zero there ends the process."""
    return node.target is aten.expand.default and node.meta["val"].numel() == 0


def is_lost(node: fx.Node) -> bool:
    """Arithmetic that OpenVINO makes a part of the sum before it, and then leaves out or applies to other elements."""
    if node.target not in ARITHMETIC:
        return False
    one, two = node.args[:2]
    if not is_sum(one):
        one, two = two, one
    if not is_sum(one):
        return False
    summed, axes = one.args[0].meta["val"], one.args[1]
    last = len(axes) == 1 and axes[0] % summed.ndim == summed.ndim - 1
    if isinstance(two, fx.Node):
        return last and two.meta["val"].ndim == 1 < node.meta["val"].ndim
    if node.target is not aten.div.Tensor and summed.is_floating_point():
        return False
    return is_sum(one.args[0]) or (summed.ndim > 2 and not last)


def is_sum(found: object) -> bool:
    return isinstance(found, fx.Node) and found.target in SUMS


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in EVERY_DAY else pytest.mark.full) for m in METHODS])
def test_nothing_is_miscomputed(method: str) -> None:
    row = main_row(method, SHORT)
    call = Outputs(row, patch(fresh_model(row), method, ratio=0.5)).eval()
    with torch.no_grad():
        program = torch.export.export(call, (row.images(2),))
    assert miscomputed(program.graph_module) == []


@pytest.mark.parametrize(
    ("bad", "function"),
    [
        (True, lambda x: x.sum(2).mean(1) / 7),
        (True, lambda x: x.sum(1) / 7),
        (True, lambda x: x.sum((1, 2)) / 7),
        (True, lambda x: (x > 0).sum(1) - 1),
        (True, lambda x: torch.arange(4) - (x > 0).sum(2)),
        (True, lambda x: x.sum(2) * torch.arange(4)),
        (True, lambda x: torch.arange(0).expand(2, -1)),
        (False, lambda x: x.sum(2) / 7),
        (False, lambda x: x.sum(1) * 7),
        (False, lambda x: x.sum(2) - x[:, 0, :4]),
    ],
)
def test_the_law_sees_them(bad: bool, function: Callable[[Tensor], Tensor]) -> None:
    """The wrong ones and the right ones are what OpenVINO 2026.4 was seen to compute so."""

    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    assert bool(miscomputed(torch.export.export(Only(), (x,)).graph_module)) is bad


def test_images_stay_apart() -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, x = patch(fresh_model(SHORT), "mctf", ratio=0.5), SHORT.images(4)
    with torch.no_grad():
        program, expected = torch.export.export(model, (x,)), model(x)
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", EXACT)
    found = torch.from_numpy(next(iter(compiled(x.numpy()).values())))
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["atm", "ward"])  # they sort equal sizes, and zeros and ones
def test_graphs_of_onnx_need_no_stable_sort(method: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, x = patch(fresh_model(SHORT), method, ratio=0.5), SHORT.images(4)
    with torch.no_grad():
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, optimize=False, verbose=False)
        expected = model(x)
    compiled = openvino.compile_model(openvino.convert_model(tmp_path / "model.onnx"), "CPU", EXACT)
    found = torch.from_numpy(next(iter(compiled(x.numpy()).values())))
    assert (found - expected).abs().max() < 1e-4
