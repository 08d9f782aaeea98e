"""What a reducing layer launches by Triton's operators on a GPU, counted without one."""

from __future__ import annotations

from collections import Counter

import pytest
from launches import launches

pytest.importorskip("triton")
from recorded import recorded

from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import launching
from tokenreduce.ops.triton.table import OPERATORS

# Kernels of a layer, one of each tuple, and how many of PyTorch's own beside them: signs that go to the GPU the first
# time; the mean over heads, and sizes in the attention of the class token.
KERNELS = {
    ("tome", "r"): ([("_match_image",), ("_merge",)], 0),
    ("ward", "flops"): ([("_mean", "_sketch"), ("_costs",), ("_cluster",), ("_merge",)], 1),
    ("evit", "flops"): ([("_class_row",), ("_fuse",), ("_fuse_rows",)], 2),
}


@pytest.mark.parametrize(("method", "budget"), KERNELS)
def test_a_reducing_layer_launches_very_few_kernels(method: str, budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators run as plain functions, so that what they launch beside their kernels counts too. Attention with
    sizes is one launch, as without."""
    monkeypatch.setattr(dispatch, "_for_gpu", OPERATORS.__getitem__)
    monkeypatch.setattr(launching, "why_not", lambda: "")
    with recorded(zeros=False) as made, dispatch.using("triton"), sized_attention.using("triton"):
        _, others = launches(method, **{budget: 13 if budget == "r" else 0.6})
    kernels = Counter(launch.name for launch in made)
    attended = kernels.pop("_attend")
    names, beside = KERNELS[method, budget]
    assert set(kernels) == {name for either in names for name in either}
    (reducing,) = {sum(kernels[name] for name in either) for either in names}
    assert reducing >= 3 and reducing - 1 <= attended < 12
    assert sum(others.values()) <= beside * reducing, others
