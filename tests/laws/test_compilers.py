"""Patched models compile whole and once, and export with a free batch size. Methods of one kind make their maps of the
same parts, so one of each kind does, on a short model, and on one model of each family one method."""

from __future__ import annotations

import warnings

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from choosing import MAIN, SHORT, exportable, on_one_row, one_of_each_family_kind, one_of_each_kind, pairs

import tokenreduce
from tokenreduce import patch, report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
KINDS = one_of_each_kind()
of_each_kind = on_one_row(KINDS, SHORT)
FAMILIES = one_of_each_family_kind()
traceable = {"where": lambda row: row.traceable, "among": exportable}


@of_each_kind
def test_every_kind_compiles_whole_and_once(backbone: Backbone, method: str) -> None:
    checks.check_compile(backbone, method)


@of_each_kind
def test_every_kind_exports_with_a_free_batch_size(backbone: Backbone, method: str) -> None:
    checks.check_export(backbone, method)


@pairs(first=("tome",), **traceable)
def test_compiles_whole_and_once(backbone: Backbone, method: str) -> None:
    checks.check_compile(backbone, method)


@pairs(chosen=((row.name, "tome") for row in FAMILIES), **traceable)
def test_exports_with_a_free_batch_size(backbone: Backbone, method: str) -> None:
    checks.check_export(backbone, method)


@on_one_row(("tome", "evit"), SHORT)
def test_exports_strictly(backbone: Backbone, method: str) -> None:
    checks.check_export(backbone, method, strict=True)


def test_kinds_are_kinds() -> None:
    """A new method is of a known kind, or tested as the first of its own."""
    assert {*KINDS} < {method for method in tokenreduce.methods("encoder") if exportable(method)}
    assert len(KINDS) >= 9


def test_feature_extraction_compiles_whole() -> None:
    torch._dynamo.reset()
    model, x = patch(fresh_model(MAIN), "tome", flops=0.6), MAIN.images()

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        return model.forward_intermediates(images, intermediates_only=True)

    with torch.no_grad():
        compiled, expected = torch.compile(maps, fullgraph=True, backend="aot_eager"), maps(x)
        for _ in range(2):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(compiled(x), expected, strict=True))


def test_a_size_first_seen_while_compiling_has_its_counts() -> None:
    torch._dynamo.reset()
    model, x = patch(fresh_model(BY_NAME["timm_vit_dynamic_size"]), "tome", flops=0.6), torch.randn(1, 3, 24, 40)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        first = compiled(x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(x), first)
        assert torch.allclose(first, model(x), atol=1e-5)
    assert report(model).flops_share == pytest.approx(0.6, abs=0.02)


@pytest.mark.full
@on_one_row([method for method in MAIN.methods if exportable(method)])
def test_inductor(backbone: Backbone, method: str) -> None:
    torch._dynamo.reset()
    model, x = patch(fresh_model(backbone), method, ratio=0.5), backbone.images()
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-4)


@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"flops": 0.7}], ids=str)
@on_one_row([method for method in MAIN.methods if exportable(method)], SHORT)
def test_traces_with_torchscript(backbone: Backbone, method: str, budget: dict[str, float]) -> None:
    """The traced model is the eager one, at the traced batch and at another: no count is part of the trace."""
    model, other = (patch(fresh_model(backbone), method, **budget) for _ in range(2))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, backbone.images())
        for batch in (2, 3):
            x = backbone.images(batch, seed=1)
            assert torch.allclose(traced(x), other(x), atol=1e-5)


def test_compiled_code_is_for_its_own_patch() -> None:
    """Models of one class share compiled code where it fits, and counts are constants in it."""
    torch._dynamo.reset()
    x, models = MAIN.images(), [patch(fresh_model(MAIN), "tome", r=r) for r in (4, 8)]
    compiled = [torch.compile(model, fullgraph=True, backend="eager") for model in models]
    with torch.no_grad():
        for model, quick in zip(models, compiled, strict=True):
            assert torch.allclose(quick(x), model(x), atol=1e-5)
        patch(models[0], "tome", r=12)
        assert torch.allclose(compiled[0](x), models[0](x), atol=1e-5)
