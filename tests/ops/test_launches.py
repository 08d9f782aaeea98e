"""The plain PyTorch path on a GPU launches few kernels: host time is what it costs there."""

from __future__ import annotations

import pytest
import torch
from launches import kernels, launches

MOST = {
    ("tome", "r"): 25,
    # 25 for each merge, of which there are 14 on average, and 45 for the rest.
    ("ward", "flops"): 25 * 14 + 45,
    # Two of these average the keys, which on a GPU waits until a method reads them.
    ("pitome", "flops"): 58,
    ("evit", "flops"): 42,
    # Six of these are for the sizes that kept tokens take over.
    ("topk", "flops"): 39,
}


@pytest.mark.parametrize(("method", "budget"), MOST)
def test_a_reducing_layer_launches_few_kernels(method: str, budget: str) -> None:
    found, counted = launches(method, **{budget: 13 if budget == "r" else 0.6})
    assert found <= MOST[method, budget], counted
    names = {name.split(".")[1] for name in counted}
    assert not names & {"index_put_", "index_put", "scatter_add", "scatter_add_", "index_add"}, "sums in any order"


def test_rounds_of_ward_launch_far_fewer_than_a_round_a_merge() -> None:
    assert launches("ward", flops=0.6, rounds=3, attended=0.0)[0] <= 76


def test_the_attention_that_ward_weighs_launches_little() -> None:
    """14 in each of the 8 layers of 11 that weigh it, of which nine make the attention itself."""
    weighed, without = (launches("ward", flops=0.6, rounds=3, attended=part)[0] for part in (0.35, 0.0))
    assert round(11 * (weighed - without)) <= 14 * 8


def test_sizes_that_are_lost_launch_nothing() -> None:
    assert launches("topk", flops=0.6, inherit=False)[0] <= 33


def test_launches_are_counted_by_the_rules() -> None:
    aten = torch.ops.aten
    assert [kernels(op) for op in (aten.sort.stable, aten.index_put_.default, aten.constant_pad_nd.default)] == [
        4,
        13,
        2,
    ]
    assert [kernels(op) for op in (aten.scatter.src, aten.scatter_.src, aten.bmm.default)] == [2, 1, 1]
    assert [kernels(op) for op in (aten.view.default, aten.slice.Tensor, aten.empty.memory_format)] == [0, 0, 0]
