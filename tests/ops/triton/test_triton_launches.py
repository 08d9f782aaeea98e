"""What a reducing layer launches by Triton's operators on a GPU, counted without one."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from triton.runtime.jit import JITCallable

pytest.importorskip("triton")
from counted import ATTENTION, launches_by_triton
from launches import CONSTANT
from recorded import recorded

import tokenreduce
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.size_channels import attended_type
from tokenreduce.ops.triton import launching
from tokenreduce.ops.triton.table import OPERATORS

POINTS = ("_mean", "_sketch", "_sketch_and_rows")  # the last with rows of the class token's attention
# Kernels of a layer, one of each tuple, and how many of PyTorch's own beside them: signs that go to the GPU the first
# time, or the sizes that shares are multiplied with.
KERNELS = {
    ("tome", "r"): ([("_match_image",), ("_merge",)], 0),
    ("ward", "flops"): ([POINTS, ("_costs",), ("_cluster",), ("_merge",)], 1),
    ("evit", "flops"): ([("_class_row",), ("_fuse",), ("_fuse_rows",)], 1),
}


@pytest.mark.parametrize(("method", "budget"), KERNELS)
def test_a_reducing_layer_launches_very_few_kernels(method: str, budget: str) -> None:
    reducing, kernels, others = launches_by_triton(method, **{budget: 13 if budget == "r" else 0.6})
    attended = kernels.pop(ATTENTION)
    names, beside = KERNELS[method, budget]
    assert set(kernels) == {name for either in names for name in either}
    assert {sum(kernels[name] for name in either) for either in names} == {reducing}
    assert reducing >= 3 and reducing - 1 <= attended < 12
    assert others.total() <= beside * reducing, others


@pytest.mark.parametrize("options", [{}, {"rounds": 3}, {"early": 0.5}, {"early": 1.0}], ids=str)
def test_the_attention_that_ward_weighs_launches_nothing_more(options: dict[str, float]) -> None:
    """In 8 of 11 layers, also in rounds and where keys are compared; nor does PyTorch beside it, but for signs that are
    copied the first time."""
    reducing, kernels, others = launches_by_triton("ward", flops=0.6, **options)
    _, without, _ = launches_by_triton("ward", flops=0.6, attended=0.0, **options)
    assert reducing == 11 and kernels["_sketch_and_rows"] + kernels["_mean_and_rows"] == 8
    assert kernels.total() == without.total() and set(others) <= {CONSTANT}
    assert without["_sketch"] + without["_mean"] == 11


@pytest.mark.parametrize("method", ["tome", "ward", "evit"])
def test_the_host_asks_little_a_launch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No function of Triton's compiler runs on the host but the launch, and the type of attention is found twice: to
    see whether it fits, and to cast."""
    monkeypatch.setattr(dispatch, "_for_gpu", OPERATORS.__getitem__)
    monkeypatch.setattr(launching, "why_not", lambda: "")
    monkeypatch.setattr(launching, "interpreted", lambda: True)
    model = tokenreduce.patch(timm.create_model("deit_small_patch16_224", depth=4).eval(), method, flops=0.7)
    calls: Counter[Any] = Counter()

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls["triton" if isinstance(frame.f_locals.get("self"), JITCallable) else frame.f_code] += 1

    with recorded() as made, torch.inference_mode(), dispatch.using("triton"), sized_attention.using("triton"):
        sys.setprofile(count)
        try:
            model(torch.zeros(1, 3, 224, 224))
        finally:
            sys.setprofile(None)
    attended = sum(launch.name == "_attend" for launch in made)
    assert attended > 0 == calls["triton"]
    assert calls[attended_type.__code__] <= 2 * attended
