"""The recipes of CONTRIBUTING.md are followed, step by step, with the code that stands there."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenreduce.patches
import torch
from timm.models.vision_transformer import VisionTransformer
from tokenreduce.patches.shared.layered import LayeredAdapter, ReducedLayer
from torch import nn

import tokenreduce
from tokenreduce.budget.geometry import Geometry
from tokenreduce.budget.rehearsal import Rehearsal
from tokenreduce.forward.run import Run
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.native import build_cuda, dispatch
from tokenreduce.ops.native.fakes import FAKES
from tokenreduce.patching import finding
from tokenreduce.reducers import registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RUN = dict(re.findall(r"<!-- run: ([\w ]+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))
EXCERPTS = re.findall(r"```(?:python|cpp)\n(.*?)```", TEXT[TEXT.index("## A kernel") :], re.DOTALL)


def load(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `name`, imported from this file for the length of a test."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def write(file: Path, block: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(RUN[block])
    return file


def test_every_block_of_code_is_run_or_quoted() -> None:
    assert list(RUN) == ["method", "method test", "toymodels", "adapter", "rows"]
    assert len(re.findall(r"^```\w", TEXT, re.MULTILINE)) == len(RUN) + len(EXCERPTS)


# A method.
@pytest.fixture
def method(tmp_path, monkeypatch) -> type[tokenreduce.Reducer]:
    """The recipe's method, registered as a file of the methods' folder is."""
    tokenreduce.methods()  # all others are registered before
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    return load(f"{registry.METHODS}.anchors", write(tmp_path / "anchors.py", "method"), monkeypatch).Anchors


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=7).eval()


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_method_obeys_the_laws(method, vit) -> None:
    assert "anchors" in tokenreduce.methods() and "anchors" in tokenreduce.compatible(vit)
    before = vit(IMAGES)
    for nothing in ({"ratio": 0}, {"r": 0}, {"flops": 1}):
        assert torch.equal(tokenreduce.patch(vit, "anchors", **nothing)(IMAGES), before), nothing
    tokenreduce.patch(vit, "anchors", ratio=0.5)
    after = vit(IMAGES)
    assert torch.equal(vit(IMAGES), after) and not torch.equal(after, before)
    assert torch.allclose(vit(IMAGES[1:]), after[1:], atol=1e-6), "an image does not depend on its batch"
    vit(IMAGES)
    report = tokenreduce.report(vit)
    assert report.tokens_left == 8 and torch.equal(report.sizes.sum(1), torch.full((2,), 16.0))
    for _, token_map in report.maps:
        share = token_map.dense()
        assert set(share.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(share.sum(1), torch.ones(2, token_map.entered)), "every token is in one output"
        assert (share.sum(2) >= 1).all(), "no output is empty"
        known, stay = token_map.sources, token_map.rep
        everyone = torch.arange(token_map.entered).expand(2, -1)
        assert torch.equal(torch.cat([known, stay], 1).sort(1).values, everyone)
    assert torch.equal(tokenreduce.unpatch(vit)(IMAGES), before)


def test_the_method_states_what_its_work_costs(method, vit) -> None:
    class Counted(method):
        """Says nothing itself."""

    shape = finding.find_backbone(vit)[2].geometry(vit)
    said, counted = (Rehearsal(reducer, shape, 16, {}, None) for reducer in (method(), Counted()))
    assert said.plan(1, 16, 7) == counted.plan(1, 16, 7) > 0 and len(counted.known) == 1


@pytest.mark.filterwarnings("ignore")
def test_the_method_exports_as_it_says(method, vit, tmp_path) -> None:
    assert tokenreduce.describe("anchors")["exportable"] is True
    answers(tokenreduce.patch(vit, "anchors", ratio=0.5), tmp_path / "anchors.onnx")


@pytest.mark.filterwarnings("ignore")
def test_a_method_of_your_own_exports_as_it_says(vit, tmp_path, monkeypatch) -> None:
    page = (ROOT / "docs/methods.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Outliers" in b)
    (tmp_path / "own_method.py").write_text(block.partition("\nmodel = ")[0])
    tokenreduce.methods()
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    load("own_method", tmp_path / "own_method.py", monkeypatch)
    assert tokenreduce.describe("outliers")["exportable"] is True
    assert tokenreduce.describe("outliers")["checked"] == "unknown", "nothing compares it with anything"
    answers(tokenreduce.patch(vit, "outliers", ratio=0.5), tmp_path / "outliers.onnx")


def answers(model: nn.Module, file: Path) -> None:
    """Assert that ONNX Runtime gives what `model` gives, for another batch size too."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    batch = torch.export.Dim("batch")
    exported = {"dynamo": True, "dynamic_shapes": ({0: batch},), "verbose": False, "optimize": False}
    torch.onnx.export(model, (IMAGES,), **exported).save(str(file))
    session = onnxruntime.InferenceSession(str(file))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        assert (torch.from_numpy(found) - model(images)).abs().max() <= 1e-4


def test_the_tests_of_the_method_pass_and_can_fail(method, tmp_path, monkeypatch) -> None:
    module = load("test_anchors", write(tmp_path / "test_anchors.py", "method test"), monkeypatch)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()
    plan = method.plan

    def shifted(self: Any, tokens: Any, keep: int, state: Any = None) -> tokenreduce.TokenMap:
        token_map = plan(self, tokens, keep, state)
        token_map.dest = (token_map.dest + 1) % keep
        return token_map

    monkeypatch.setattr(method, "plan", shifted)
    with pytest.raises(AssertionError):
        tests[0]()


# A family.
@pytest.fixture
def row(tmp_path, monkeypatch) -> Iterator[Any]:
    """The recipe's library, adapter and row, in folders of a temporary repository."""
    load("toymodels", write(tmp_path / "toymodels.py", "toymodels"), monkeypatch)
    write(tmp_path / "patches/toymodels/vit.py", "adapter")
    rows = load("toymodels_rows", write(tmp_path / "rows/toymodels/vit.py", "rows"), monkeypatch)
    monkeypatch.setattr(tokenreduce.patches, "__path__", [*tokenreduce.patches.__path__, str(tmp_path / "patches")])
    monkeypatch.setitem(finding.LIBRARIES, "toymodels", "toymodels")
    importlib.invalidate_caches()
    yield rows.make_rows()[0]
    for name in [name for name in sys.modules if name.startswith(f"{finding.PATCHES}.toymodels")]:
        del sys.modules[name]
    vars(tokenreduce.patches).pop("toymodels", None)


def built(row: Any) -> nn.Module:
    torch.manual_seed(0)
    return row.build().eval()


def test_the_family_is_found_by_its_folder(row) -> None:
    assert ("toymodels", "vit") in finding._families()
    name, backbone, adapter = finding.find_backbone(nn.Sequential(built(row)))
    assert (name, type(backbone).__name__, adapter.family) == ("0", "Transformer", "toymodels Transformer")


@torch.no_grad()
def test_the_family_obeys_the_laws(row) -> None:
    model, inputs = built(row), row.inputs()
    before, classes = model(**inputs), [type(module) for module in model.modules()]
    fitting = set(tokenreduce.compatible(model))
    assert {"tome", "ward", "evit", "pool", "topk", "zero_tprune", "mctf"} <= fitting
    for name in ("tome", "evit", "pool", "mctf", "topk"):
        assert torch.equal(tokenreduce.patch(model, name, ratio=0)(**inputs), before), name
        reduced = tokenreduce.patch(model, name, ratio=0.5)(**inputs)
        assert reduced.isfinite().all() and not torch.equal(reduced, before)
        assert tokenreduce.report(model).tokens_left <= 32
    assert torch.equal(tokenreduce.unpatch(model)(**inputs), before)
    assert [type(module) for module in model.modules()] == classes


@torch.no_grad()
def test_identical_tokens_merge_without_a_trace(row) -> None:
    model, inputs = built(row), row.repeated((1, 2))
    row.equal_positions(model)
    before = model(**inputs)
    last: list[int] = []
    model.get_submodule(row.last).register_forward_hook(lambda module, args, output: last.append(output.shape[1]))
    tokenreduce.patch(model, "tome", schedule=tokenreduce.Schedule.keep({1: 32}))
    assert torch.allclose(model(**inputs), before, atol=2e-5 * float(before.abs().max().clamp_min(1)))
    assert last == [33], "half of the 64 image tokens and the class token reach the last layer"


def test_the_costs_of_the_family_are_counted_ones(row) -> None:
    model, images = built(row), row.inputs(1)
    geometry = finding.find_backbone(model)[2].geometry(model)
    all_tokens = (geometry.count,) * geometry.depth
    macs = geometry.costs.macs(all_tokens, all_tokens, geometry.protected, "mid")
    assert tokenreduce.count_flops(model, images).total == macs


def test_the_facts_that_the_recipes_explain_exist() -> None:
    """**`name`**: what a method or an adapter says."""
    stated = (LayeredAdapter, ReducedLayer, Geometry, Run, tokenreduce.TokenMap)
    known = {name for cls in stated for owner in cls.__mro__ for name in (*vars(owner), *annotations(owner))}
    explained = re.findall(r"\*\*`(?:run\.)?(\w+)[^`]*`", TEXT)
    assert len(explained) >= 14 and set(explained) <= known, set(explained) - known


def annotations(cls: type) -> dict[str, Any]:
    return vars(cls).get("__annotations__", {})


def test_the_silenced_modules_are_all_that_writes(row) -> None:
    model, inputs = built(row), row.inputs()
    for name, module in model.named_modules():
        if name.endswith(row.silence):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    seen: list[torch.Tensor] = []
    model.blocks.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    model(**inputs)
    assert torch.equal(*seen)


# A kernel.
def test_the_steps_of_the_kernel_quote_the_files() -> None:
    quoted = re.findall(r"In\s`([\w./]+)`:\n\n((?:```\w+\n.*?```\n+)+)", TEXT, re.DOTALL)
    assert [file for file, _ in quoted] == [
        "tokenreduce/ops/merging.py",
        "tokenreduce/ops/native/dispatch.py",
        "csrc/ops.cpp",
        "csrc/cpu/merge.cpp",
        "tokenreduce/ops/native/fakes.py",
    ]
    found = [(file, code) for file, blocks in quoted for code in re.findall(r"```\w+\n(.*?)```", blocks, re.DOTALL)]
    assert [code for _, code in found] == EXCERPTS
    for file, code in found:
        assert code in (ROOT / file).read_text(), f"{file} no longer holds\n{code}"


def test_every_kernel_went_through_the_steps() -> None:
    def declared(pattern: str, *files: Path) -> set[str]:
        return {name for file in files for name in re.findall(pattern, file.read_text())}

    kernels = set(dispatch.COMPILED)
    assert declared(r'm\.def\(\s*"(\w+)\(', ROOT / "csrc/ops.cpp") == kernels
    for folder, suffix, names in (("cpu", "cpp", kernels), ("cuda", "cu", build_cuda.CUDA)):
        assert declared(r'm\.impl\("(\w+)"', *(ROOT / "csrc" / folder).glob(f"*.{suffix}")) == names
    assert kernels >= build_cuda.CUDA
    assert {fake.__name__ for fake in FAKES} == kernels
    assert declared(r'"(\w+)": \(', ROOT / "tests/ops/test_fakes.py") >= kernels
    text = (ROOT / "docs/kernels.md").read_text()
    assert all(f"| `{name}` |" in text for name in kernels)


@pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")
def test_the_kernel_and_the_reference_agree() -> None:
    sizes = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 1.0]])
    assert dispatch.why_not("size_bias", sizes) == ""
    with dispatch.using("reference"):
        reference = size_bias(sizes, 1, 2)
    assert torch.allclose(size_bias(sizes, 1, 2), reference, atol=1e-6) and reference.shape == (2, 1, 1, 6)
