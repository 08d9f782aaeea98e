"""Methods in ONNX Runtime: exported models answer as the patched ones do, also for another batch size."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from backbones import BY_NAME, Backbone, call, fresh_model
from choosing import MAIN, exportable, one_of_each_family_kind, one_of_each_kind
from timms import small_vit
from torch import Tensor, nn
from transforming import FEW_ROUNDS

import tokenreduce
from tokenreduce import Schedule, patch
from tokenreduce.ops.farthest_first import farthest_first
from tokenreduce.ops.linkage import agglomerate
from tokenreduce.reducers import registry
from tokenreduce.reducers.parts.clusters import squared_distances

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")

VIDEO = BY_NAME["hf_videomae"]
SEGMENTER = BY_NAME["timm_vit_segmenter"]


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Tracing makes so many objects that looking for garbage takes a quarter of the time."""
    gc.disable()
    yield
    gc.enable()


class Only(nn.Module):
    """`model` as a function of one tensor that returns a tensor or a list of them."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.model, x)


def check_onnx(model: nn.Module, x: Tensor, other: Tensor, **options: Any) -> None:
    """Export with `x` for any batch size and compare all outputs for `other`."""
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "optimize": False, "verbose": False} | options
    with torch.no_grad():
        program = torch.onnx.export(model, (x,), dynamo=True, **options)
        expected = model(other)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    for there, here in zip(found, [expected] if isinstance(expected, Tensor) else expected, strict=True):
        assert there.shape == here.shape
        assert (torch.from_numpy(there) - here).abs().max() < 1e-4


def two_blocks(**arguments: Any) -> nn.Module:
    """16 tokens, every parameter perturbed."""
    torch.manual_seed(0)
    model = small_vit(patch_size=8, depth=2, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(batch: int, seed: int) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def few_rounds(method: str) -> dict[str, Any]:
    """Options of the method that make its graph short."""
    return {name: few for name, few in FEW_ROUNDS.items() if name in tokenreduce.describe(method)["options"]}


def methods(fit: Callable[[str], bool]) -> list[Any]:
    """One method of each kind every day, all in the full suite."""
    found = [method for method in tokenreduce.methods("encoder") if exportable(method) and fit(method)]
    daily = one_of_each_kind()
    return [pytest.param(m, marks=() if m in daily else (pytest.mark.full,)) for m in found]


@pytest.mark.parametrize("method", methods(MAIN.fits))
def test_methods_for_images(method: str) -> None:
    model = patch(two_blocks(), method, ratio=0.5, **few_rounds(method))
    check_onnx(model, images(2, seed=0), images(3, seed=1))


def test_ward_in_rounds() -> None:
    check_onnx(patch(two_blocks(), "ward", ratio=0.5, rounds=2), images(2, seed=0), images(3, seed=1))


@pytest.mark.parametrize("method", methods(lambda method: VIDEO.fits(method) and not MAIN.fits(method)))
def test_methods_for_videos(method: str) -> None:
    model = patch(fresh_model(VIDEO), method, ratio=0.5, **few_rounds(method))
    wrapped = Only(model, lambda model, x: model(pixel_values=x).logits)
    check_onnx(wrapped, *(VIDEO.inputs(batch, seed)["pixel_values"] for batch, seed in ((2, 0), (3, 1))))


@pytest.mark.parametrize("method", methods(lambda method: SEGMENTER.fits(method) and not MAIN.fits(method)))
def test_methods_for_auxiliary_heads(method: str) -> None:
    model = patch(fresh_model(SEGMENTER), method, ratio=0.5, **few_rounds(method))
    wrapped = Only(model, lambda model, x: call(model, SEGMENTER.given(x)))
    check_onnx(wrapped, SEGMENTER.images(2, seed=0), SEGMENTER.images(3, seed=1))


@pytest.mark.parametrize(
    "method", ["pitome", "tofu", "mame", "token_transforming", "expedit", "gtp", "mctf", "ward", "atc"]
)
def test_the_batch_stays_free_after_an_example_of_one_image(method: str) -> None:
    model = patch(two_blocks(), method, ratio=0.5, **few_rounds(method))
    check_onnx(model, images(1, seed=0), images(3, seed=1))


@pytest.mark.parametrize("opset", [18, 20, pytest.param(21, marks=pytest.mark.full), 22, 23, 24])
def test_operator_sets(opset: int) -> None:
    """From 23 on attention is one operator, which takes its mask in one form only."""
    model = patch(two_blocks(), "tome", ratio=0.5)
    check_onnx(model, images(2, seed=0), images(3, seed=1), opset_version=opset)


@pytest.mark.parametrize("row", one_of_each_family_kind(), ids=lambda row: row.name)
@pytest.mark.full
def test_every_family_with_attention_as_one_operator(row: Backbone) -> None:
    model = patch(fresh_model(row), "tome", ratio=0.4)
    wrapped = Only(model, lambda model, x: call(model, row.given(x)))
    check_onnx(wrapped, row.images(2, seed=0), row.images(3, seed=1), opset_version=23)


def run_in_half(proto: Any, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    [given] = session.get_inputs()
    x = x.half() if given.type == "tensor(float16)" else x
    return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0]).float()


@pytest.mark.parametrize("method", ["tome", "evit"])
def test_the_two_ways_to_half_precision(method: str) -> None:
    """What docs/onnx.md says of them."""
    tool = pytest.importorskip("onnxruntime.transformers.float16", reason="the float16 tool is not installed")
    model, x = patch(two_blocks(), method, ratio=0.5), images(2, seed=0)
    with torch.no_grad():
        expected = model(x)
        whole = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False).model_proto
        half = torch.onnx.export(model.half(), (x.half(),), dynamo=True, optimize=False, verbose=False).model_proto
    assert (run_in_half(half, x) - expected).abs().max() < 0.01
    blocked = [*tool.DEFAULT_OP_BLOCK_LIST, "ScatterElements", "Expand", "ConstantOfShape"]
    made = tool.convert_float_to_float16(whole, keep_io_types=True, op_block_list=blocked)
    assert (run_in_half(made, x) - expected).abs().max() < 0.01


def test_optimised_with_protected_tokens() -> None:
    """As `torch.onnx.export` does by default."""
    model = patch(two_blocks(reg_tokens=2), "tome", flops=0.7)
    check_onnx(model, images(1, seed=0), images(4, seed=1), optimize=True)


@pytest.mark.parametrize("restore", ["copy", "freeze", "delta"])
def test_restored_tokens(restore: str) -> None:
    """In a map, and in a head that pools all tokens."""

    def call(model: nn.Module, x: Tensor) -> list[Tensor]:
        last = model.forward_intermediates(x, indices=1, intermediates_only=True)[0]
        return [last, model.forward_head(last.flatten(2).transpose(1, 2))]

    model = two_blocks(class_token=False, global_pool="avg")
    patch(model, "tome", schedule=Schedule.keep({0: 10}), restore=restore)
    check_onnx(Only(model, call), images(2, seed=0), images(3, seed=1))


def test_loops_decide_as_the_kernels_do() -> None:
    """Also between equals, which whole numbers have many of."""

    def clusters(_: nn.Module, x: Tensor) -> list[Tensor]:
        distance = squared_distances(x)
        seeds = farthest_first(distance, x.norm(dim=-1).argmax(1), 6)
        return [seeds, *(agglomerate(distance, 5, linkage) for linkage in ("average", "ward"))]

    def points(batch: int) -> Tensor:
        return torch.randint(-2, 3, (batch, 12, 2), generator=torch.Generator().manual_seed(batch)).float()

    check_onnx(Only(nn.Identity(), clusters), points(2), points(40))


def test_a_method_of_your_own_exports_or_does_not_claim_to() -> None:
    page = (Path(__file__).parents[2] / "docs/methods.md").read_text()
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@tokenreduce" in block)
    module, known, every = ModuleType("readme_example"), {*tokenreduce.methods("encoder")}, {*tokenreduce.methods()}
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(example.split("\n\nmodel = ")[0], vars(module))
        [name] = {*tokenreduce.methods("encoder")} - known
        said = tokenreduce.describe(name)["exportable"]
        if said is True:
            check_onnx(patch(two_blocks(), name, ratio=0.5), images(2, seed=0), images(3, seed=1))
        else:
            assert said == "unknown"
    finally:
        del sys.modules[module.__name__]
        for name in {*tokenreduce.methods()} - every:
            registry._registry.pop(name)
