"""Exported models in OpenVINO: no graph has what OpenVINO computes wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from backbones import fresh_model
from choosing import SHORT, exportable, one_of_each_kind
from torch import fx, nn

import tokenreduce
from tokenreduce import patch

SUMS = (torch.ops.aten.sum.dim_IntList, torch.ops.aten.mean.dim)
METHODS = [method for method in tokenreduce.methods("encoder") if exportable(method) and SHORT.fits(method)]
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
EVERY_DAY = {"mctf", "topk", *one_of_each_kind()}


def nodes(module: nn.Module) -> Iterator[fx.Node]:
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield from inner.graph.nodes


def divided_means(module: nn.Module) -> list[fx.Node]:
    """Where a sum or mean over one axis, then another, is divided by a number: OpenVINO 2026.4 mixes the images up."""
    return [
        node
        for node in nodes(module)
        if node.target is torch.ops.aten.div.Tensor
        and not isinstance(node.args[1], fx.Node)
        and node.args[0].target in SUMS
        and node.args[0].args[0].target in SUMS
    ]


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in EVERY_DAY else pytest.mark.full) for m in METHODS])
def test_no_mean_of_sums_is_divided(method: str) -> None:
    model = patch(fresh_model(SHORT), method, ratio=0.5)
    with torch.no_grad():
        program = torch.export.export(model, (SHORT.images(2),))
    assert divided_means(program.graph_module) == []


def test_the_law_sees_one() -> None:
    class Bad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(2).mean(1) / 7

    assert len(divided_means(torch.export.export(Bad(), (torch.ones(2, 3, 4, 5),)).graph_module)) == 1


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
