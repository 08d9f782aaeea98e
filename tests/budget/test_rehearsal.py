"""The method's own work in a budget: what was stated or rehearsed is what runs."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from choosing import MAIN

import tokenreduce
from tokenreduce.forward.records import last_record
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.reducers import registry
from tokenreduce.reducers.registry import lookup


@pytest.mark.parametrize("method", MAIN.methods)
def test_budgets_of_all_methods_land_within_two_points_with_nothing_uncounted(method) -> None:
    """On a narrow model, where a method's own work is a large part, as counted by dispatch on a forward."""
    model, x = fashion_vit(), torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    full = tokenreduce.count_flops(model, x).total
    tokenreduce.patch(model, method, flops=0.6)
    counted = tokenreduce.count_flops(model, x)
    assert abs(counted.total / full - 0.6) < 0.02
    assert counted.total / full == pytest.approx(tokenreduce.report(model).flops_share, abs=0.002)
    assert counted.uncounted == {}


@pytest.mark.parametrize("method", [m for m in MAIN.methods if tokenreduce.describe(m)["adaptive"]])
def test_what_an_adaptive_method_spends_on_deciding_counts(method) -> None:
    model, x = fashion_vit(), torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    full = tokenreduce.count_flops(model, x).total
    tokenreduce.patch(model, method)
    counted = tokenreduce.count_flops(model, x).total
    assert counted / full == pytest.approx(tokenreduce.report(model).flops_share, abs=0.002)


class Unstated(lookup("gtp")):
    """Counted, since it does not say itself what its work costs."""


def test_rehearsing_at_a_size_first_seen_is_not_counted(monkeypatch) -> None:
    monkeypatch.setitem(registry._registry, "unstated", Unstated)
    model = fresh_model(BY_NAME["timm_vit_dynamic_size"])
    tokenreduce.patch(model, "unstated", flops=0.6)
    assert len(model._tokenreduce.reduction._work) > 5
    x = torch.randn(1, 3, 48, 24)
    assert tokenreduce.count_flops(model, x) == tokenreduce.count_flops(model, x)


def test_sizes_stay_in_fp32_and_exact_under_autocast() -> None:
    """Also where the map is dense, and with medoids that stand for their clusters without being averaged."""
    family = BY_NAME["timm_vit_qk_norm"]
    for method, options in (("token_transforming", {}), ("gtp", {}), ("kmedoids", {"aggregate": False})):
        model = fresh_model(BY_NAME["timm_vit_qk_norm"])
        tokenreduce.patch(model, method, ratio=0.5, **options)
        model(family.images())
        expected = [m.sizes(None).sum() for _, m in last_record(model._tokenreduce.reduction).maps[:1]]
        seen = []
        block = model.blocks[-1]
        handle = block.attn.register_forward_pre_hook(
            lambda m, a, k, seen=seen: seen.append(k["attn_mask"]), with_kwargs=True
        )
        with torch.autocast("cpu", torch.bfloat16):
            model(family.images())
        handle.remove()
        assert seen[0] is not None, "merged tokens weigh more in attention"
        sizes = tokenreduce.report(model).sizes
        assert sizes.dtype == torch.float32
        if method != "gtp":
            assert torch.allclose(sizes.sum(1), torch.full((2,), float(expected[0]) / 2), rtol=1e-5)
