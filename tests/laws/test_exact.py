"""Law 1: nothing to remove, nothing changed; and what is to be removed is, as much as was asked for."""

from __future__ import annotations

from functools import cache

import backbone_checks as checks
import pytest
import torch
from backbones import BACKBONES, Backbone, shared_model
from choosing import SAMPLE, every_backbone, pairs

import tokenreduce
from tokenreduce import patch, report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pairs(everywhere=SAMPLE, first=tokenreduce.methods("encoder"), main=tokenreduce.methods("encoder"))
def test_nothing_to_remove_changes_nothing(backbone: Backbone, method: str) -> None:
    checks.check_exact(backbone, method)


@every_backbone()
def test_compatible_says_what_fits(backbone: Backbone) -> None:
    model = shared_model(backbone.name)
    fitting = tokenreduce.compatible(model)
    assert [*fitting] == backbone.methods
    for method in sorted(backbone.refuses):
        with pytest.raises(ValueError, match=f"{method} cannot run on this"):
            patch(model, method, ratio=0.5)
        assert not [m for m in model.modules() if "_tokenreduce" in vars(m)]


@every_backbone()
@pytest.mark.parametrize("method", ["tome", "ward"])
def test_reduction_is_real(backbone: Backbone, method: str) -> None:
    """Counts the tokens that reach the last layer's Linear."""
    seen: list[int] = []
    with checks.shared(backbone) as model, torch.no_grad():
        handle = model.get_submodule(backbone.last).register_forward_hook(
            lambda m, args, out: seen.append(out.shape[1])
        )
        patch(model, method, ratio=0.5)
        outputs = backbone.outputs(model, backbone.inputs())
        handle.remove()
        assert report(model).tokens_left == backbone.count // 2
        protected = backbone.prefix + backbone.suffix
        assert seen == [report(model).tokens[-2 if backbone.scans else -1] + protected]
        assert seen[0] < backbone.count + protected
        assert report(model).protected == protected
        kept = [out for out in outputs if out.ndim == 3 and out.shape[1] == seen[0]]
        assert bool(kept) == backbone.tokens_stay_reduced


@cache
def unpatched_count(backbone: Backbone) -> tokenreduce.FlopCount:
    model = shared_model(backbone.name)
    return tokenreduce.count_flops(lambda: backbone.outputs(model, backbone.inputs(1)), ())


@pytest.mark.parametrize(
    ("backbone", "share"),
    [pytest.param(b, share, id=f"{b.name}-{share}") for b in BACKBONES for share in b.shares],
)
def test_budgets_are_met(backbone: Backbone, share: float) -> None:
    """Of the backbone's own multiply-adds, as its costs say and as the dispatcher counts them."""
    with checks.shared(backbone) as model, torch.no_grad():
        part, whole = tokenreduce.patching.finding.find_backbone(model)[1], unpatched_count(backbone)
        patch(model, "tome", flops=share, layers=checks.reducing_layers(model))
        left = tokenreduce.count_flops(lambda: backbone.outputs(model, backbone.inputs(1)), ())
        assert not left.uncounted
        full = checks.reduction_of(model).geometry.costs.macs
        n, depth = backbone.count, len(report(model).tokens)
        closed = full((n,) * depth, (n,) * depth, backbone.prefix + backbone.suffix, "mid")
        saved = (whole.total - left.model - left.reducer) / closed
        assert saved == pytest.approx(1 - share, abs=0.02)
        assert report(model).flops_share == pytest.approx(share, abs=0.02)
        if part is model:
            assert closed == pytest.approx(whole.total, rel=0.01)
