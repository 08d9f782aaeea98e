"""Whole models give the same by Triton's operators, interpreted, as by the references."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("triton")
import tokenreduce
from tokenreduce.forward import run
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import table

METHODS = {
    "tome": {"bipartite_merge"},
    "ward": {"ward_cluster", "ward_cluster_attended", "merge_apply"},
    "evit": {"fuse_attended", "merge_fused"},
    "topk": {"class_rows"},
    "pitome": {"merge_apply"},
    "dsm": {"bipartite_match"},
    "tofu": {"bipartite_match"},
}


@lru_cache
def model(name: str) -> tuple[nn.Module, Tensor]:
    """A small one, and images for it."""
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=10, img_size=96, depth=5, patch_size=8).eval()
    return made, torch.randn(2, 3, 96, 96)


def outputs(name: str, method: str, choice: str) -> tuple[Tensor, Tensor]:
    """Logits, and all tokens at the end."""
    made, images = model(name)
    tokenreduce.patch(made, method, ratio=0.6)
    with torch.no_grad(), dispatch.using(choice), sized_attention.using("triton" if choice == "triton" else "mask"):
        return made(images), made.get_intermediate_layers(images, n=1)[0]  # type: ignore[operator]


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def counting(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the operators that are called from here on."""
    called: set[str] = set()

    def noted(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            called.add(name)
            return operator(*args)

        return call

    for name, operator in table.OPERATORS.items():
        monkeypatch.setitem(table.OPERATORS, name, noted(name, operator))
    return called


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        called = counting(patch)
        found = outputs(name, method, "triton")
    assert called >= METHODS[method], called
    same(found, outputs(name, method, "reference"))


@pytest.mark.interpreted
@pytest.mark.parametrize("options", [{}, {"metric": "features"}])
def test_maps_that_were_planned_ahead_are_the_same(options: dict[str, str]) -> None:
    """Keys alone are enough for them, so that they can be made beside attention; of features they cannot."""
    made, images = model("vit_tiny_patch16_224")
    planned: list[torch.device] = []

    def beside(device: torch.device, work: Callable[[], Any]) -> Callable[[], Any]:
        planned.append(device)
        result = work()
        return lambda: result

    tokenreduce.patch(made, "tome", ratio=0.6, **options)
    with torch.no_grad(), dispatch.using("triton"), pytest.MonkeyPatch.context() as patch:
        expected = made(images)
        maps = tokenreduce.report(made).maps
        patch.setattr(run, "pays", lambda x: True)
        patch.setattr(run, "beside", beside)
        found = made(images)
        assert len(planned) == (0 if options else len(maps)) and maps
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
