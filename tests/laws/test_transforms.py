"""Under the transforms and modes of PyTorch a patched model is right, or refused in words: every method."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from choosing import SHORT, exportable, main_row, one_of_each_family_fact, pairs
from transforming import CHEAP, TRANSFORMS, Outputs, models, outcome

import tokenreduce
from tokenreduce import patch

pytestmark = pytest.mark.filterwarnings("ignore")
COLUMNS = json.loads((Path(__file__).parents[2] / "benchmarks/results/transforms.json").read_text())["columns"]
REFUSED = {"fx": "torch.fx", "jit.script": "torch.jit.script", "ONNX, dynamo=False": "dynamo=True"}
VIDEO = BY_NAME["hf_videomae"]


@pytest.mark.parametrize("transform", CHEAP)
@pytest.mark.parametrize("method", tokenreduce.methods("encoder"))
def test_right_or_refused(method: str, transform: str) -> None:
    judge(transform, outcome(transform, main_row(method, SHORT), method))


@pytest.mark.parametrize("transform", CHEAP)
def test_ward_in_rounds(transform: str) -> None:
    judge(transform, outcome(transform, SHORT, "ward", rounds=2))


def judge(transform: str, found: str) -> None:
    if found.startswith("cannot"):
        pytest.skip("nor does the unpatched model")
    if transform in REFUSED:
        assert found.startswith("refused: ") and REFUSED[transform] in found and "tokenreduce.unpatch(model)" in found
    else:
        assert found == "right"


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_results_are_of_all_methods_and_transforms(library: str) -> None:
    """And none is wrong, or an error that is not the unpatched model's own."""
    small = models()[library]
    fitting = [method for method in tokenreduce.methods("encoder") if library == "timm" or small.fits(method)]
    assert [*COLUMNS[library]] == [*TRANSFORMS]
    for transform, column in COLUMNS[library].items():
        assert [*column] == ["unpatched", *fitting], transform
        bad = {method: found for method, found in column.items() if found.startswith(("wrong", "crash"))}
        assert not bad.keys() - {"unpatched"}, transform


@pytest.mark.parametrize("tracer", ["create_feature_extractor", "get_graph_node_names"])
def test_feature_extractors_of_torchvision_are_refused(tracer: str) -> None:
    from torchvision.models import feature_extraction

    model = patch(fresh_model(SHORT), "tome", ratio=0.5)
    with pytest.raises(
        ValueError, match=r"torch\.fx cannot trace .*torch\.export\.export, or call tokenreduce\.unpatch"
    ):
        getattr(feature_extraction, tracer)(model, *(["head"],) * (tracer == "create_feature_extractor"))


@pytest.mark.parametrize("free", [{2: True}, {0: True, 3: True}, {0: True, 2: True, 3: True}], ids=str)
@pytest.mark.parametrize("method", ["tome", "pool"])
def test_free_sizes_are_refused(method: str, free: dict[int, bool]) -> None:
    model = patch(fresh_model(BY_NAME["timm_vit_dynamic_size"]), method, ratio=0.5)
    sizes = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    with pytest.raises(ValueError, match=r"free height, width .* leave only the batch free .* once for each size"):
        torch.export.export(model, (torch.randn(2, 3, 32, 24),), dynamic_shapes=(sizes,))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_says_so(dynamo: bool) -> None:
    """Also where the exporter puts an error of its own around it."""
    model = patch(fresh_model(BY_NAME["timm_vit_dynamic_size"]), "tome", ratio=0.5)
    dynamic = {"dynamic_shapes": ({2: torch.export.Dim.DYNAMIC},)} if dynamo else {}
    with pytest.raises(Exception) as caught:
        torch.onnx.export(model, (torch.randn(2, 3, 32, 24),), io.BytesIO(), dynamo=dynamo, **dynamic)
    said = str(caught.value) + str(caught.value.__cause__)
    assert ("leave only the batch free" if dynamo else "export with dynamo=True") in said


def test_nothing_to_remove_exports_by_the_old_exporter() -> None:
    file = io.BytesIO()
    torch.onnx.export(patch(fresh_model(SHORT), "tome", ratio=0), (SHORT.images(),), file, dynamo=False)
    assert file.getvalue()


@pytest.mark.parametrize("method", ["tome", "mame", "token_transforming", "gtp", "evit"])
def test_gradients_of_a_trace(method: str) -> None:
    """Plans have no gradient, in a trace neither."""
    model, x = patch(fresh_model(SHORT), method, ratio=0.5), SHORT.images(seed=1)
    gradients = []
    for call in (torch.jit.trace(model, SHORT.images()), model):
        model.zero_grad()
        call(x).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


traced = pairs(
    chosen=[
        *((row.name, "tome") for row in one_of_each_family_fact()),
        *((VIDEO.name, method) for method in ("rlt", "centerclip")),
        ("timm_vit_segmenter", "dtop"),
    ],
    where=lambda row: row.traceable,
    among=exportable,
)


@traced
def test_traces_of_families(backbone: Backbone, method: str) -> None:
    """The trace is the eager model, at another batch too, and made where gradients are on it is the same graph."""
    call = Outputs(backbone, patch(fresh_model(backbone), method, ratio=0.5)).eval()
    trace = torch.jit.trace(call, backbone.images())  # whose check traces again without gradients
    with torch.no_grad():
        for images in (backbone.images(2, seed=1), backbone.images(3, seed=1)):
            torch.testing.assert_close(trace(images), call(images), atol=1e-5, rtol=1e-5)
