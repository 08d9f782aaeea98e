"""The compiled kernels as operators of `torch.compile`: what they return is foretold, and a graph holds them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from kernel_calls import by_reference, kernel
from torch import nn

import tokenreduce
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.native.fakes import FAKES

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")

X, SIZES, HEADS = torch.randn(2, 9, 8), torch.rand(2, 9) + 1, torch.randn(2, 3, 9, 4)
DEST = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]).expand(2, -1)
REP, SOURCES = torch.arange(5).expand(2, -1), torch.arange(5, 9).expand(2, -1)
LONGER, SHORTER = torch.randn(2, 12, 8), torch.randn(2, 8, 8)
SCAN = (
    X.abs(),
    -torch.rand(8, 3),
    torch.randn(2, 9, 3),
    torch.randn(2, 9, 3),
    None,
    X,
    None,
    torch.ones(8),
    None,
    SIZES,
    True,
    True,
)
CALLS: dict[str, tuple[Any, ...]] = {
    "bipartite_match": (HEADS.half(), 5, 1),
    "ward_match": (X, SIZES, None, 8, [7, 5], 0),
    "ward_cluster": (HEADS, SIZES, None, 4, False, 5),
    "ward_in_place": (X, torch.randn(2, 9, 2), SIZES, None, 8, 0.2, 5),
    "merge_apply": (LONGER.bfloat16(), DEST, REP, SOURCES, SIZES, 1, 2),
    "bipartite_merge": (LONGER, torch.randn(2, 2, 12, 4), None, 6, 0, 1, 2),
    "size_bias": (SIZES, 1, 2),
    "attention_statistics": (HEADS, HEADS, None),
    "class_rows": (HEADS.half(), HEADS.half(), SIZES[:, None, None], 2),
    "pitome_energy": (X.half(), 0.5, 1.0, True),
    "restore_apply": (SHORTER, DEST, LONGER, SHORTER, 1, 2),
    "krige_apply": (SHORTER, DEST, LONGER, SHORTER, 1, 2, 16, 2.0, 0.01, 1e-6),
    "selective_scan": (X, *SCAN),
    "selective_scan_backward": (X, X, *SCAN),
    "order_outputs": (DEST, REP),
    "scan_walks": (REP, DEST, SIZES[:, :5].contiguous(), 4, 1, 4),
    "causal_conv": (X, torch.randn(8, 4), None, None, False),
    "causal_conv_backward": (X, X, torch.randn(8, 4), torch.randn(8), None, True),
}


@pytest.mark.parametrize("name", sorted(dispatch.COMPILED))
def test_fakes_foretell_what_kernels_return(name: str) -> None:
    assert name in {fake.__name__ for fake in FAKES}
    op = kernel(name).default
    torch.library.opcheck(op, CALLS[name], test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


class Graphs:
    """A backend that runs what it is given and counts the operators of this library in it."""

    def __init__(self) -> None:
        self.kernels: list[str] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes]
        self.kernels += [name.split(".")[-1] for name in names if "tokenreduce_kernels" in name]
        return graph


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=3).eval()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("tome", {"bipartite_merge"}),
        ("ward", {"ward_cluster", "merge_apply"}),
        ("pitome", {"pitome_energy", "bipartite_match", "merge_apply"}),
        ("gtp", {"attention_statistics", "size_bias"}),
    ],
)
def test_compiled_models_hold_kernels_and_answer_as_before(method: str, expected: set[str]) -> None:
    model, images, graphs = small_model(), torch.randn(2, 3, 64, 64), Graphs()
    tokenreduce.patch(model, method, ratio=0.5)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
        assert expected <= set(graphs.kernels)
        count = len(graphs.kernels)
        compiled(images)
        assert len(graphs.kernels) == count, "recompiled"


def test_compiled_blocks_hold_kernels() -> None:
    model, images, graphs = small_model(), torch.randn(2, 3, 64, 64), Graphs()
    tokenreduce.patch(model, "tome", ratio=0.5)
    torch.compiler.reset()
    with torch.no_grad():
        expected = model(images)
        for block in model.blocks:
            block.compile(backend=graphs)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    assert set(graphs.kernels) >= {"bipartite_merge"}


def test_training_compiles_with_the_reference() -> None:
    model, images = small_model(), torch.randn(2, 3, 64, 64)
    tokenreduce.patch(model, "tome", ratio=0.5)
    torch.compiler.reset()
    graphs = Graphs()
    torch.compile(model, backend=graphs, fullgraph=True)(images).sum().backward()
    assert "merge_apply" not in graphs.kernels and "bipartite_merge" not in graphs.kernels
    found = model.blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    by_reference(model, images).sum().backward()
    torch.testing.assert_close(found, model.blocks[0].attn.qkv.weight.grad, rtol=1e-3, atol=1e-4)


def test_exported_programs_run_without_this_library() -> None:
    model, images = small_model(), torch.randn(2, 3, 64, 64)
    tokenreduce.patch(model, "tome", ratio=0.5)
    with torch.no_grad():
        for strict in (False, True):
            program = torch.export.export(model, (images,), strict=strict)
            assert not [node for node in program.graph.nodes if "tokenreduce_kernels" in str(node.target)]
