"""Patched `VisionMamba`: what is left is scanned in its order, with stand-ins and gaps, as a slow model does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, METHODS, Backbone, fresh_model
from choosing import every_backbone, pairs
from rows.scan import vim as vim_rows
from slow_scans import SlowVim
from torch import Tensor, nn
from torch.nn import functional as F

import tokenreduce
from tokenreduce import Reducer, Schedule, TokenMap, patch, report, unpatch
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward import run as running
from tokenreduce.maps.token_map import keep_tokens
from tokenreduce.maps.walks import CONVOLUTIONS, GAPS
from tokenreduce.reducers import registry

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
VIM, VIDEOMAMBA = BY_NAME["scan_vim"], BY_NAME["scan_videomamba"]
RULES = [*((conv, "hold") for conv in CONVOLUTIONS), *(("stand_in", gap) for gap in GAPS if gap != "hold")]
TWICE = Schedule.keep({0: 40, 2: 20})
rules = pytest.mark.parametrize(("conv", "gap"), RULES)


def of_scans(row: Backbone) -> bool:
    return bool(row.scans)


def of_vim(row: Backbone) -> bool:
    return row.name in {own.name for own in vim_rows.make_rows()}


@dataclass(frozen=True)
class Dropping(Reducer):
    """Keeps other tokens in each image, in raster order or in any, and keeps what it was shown."""

    name: ClassVar[str] = "dropping_scanned"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026
    needs: ClassVar[frozenset[str]] = frozenset({"scan_output", "time_step"})
    shown: ClassVar[dict[str, Tensor]] = {}

    raster: bool = False

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        batch, n = tokens.features.shape[:2]
        self.shown.update({"scan_output": tokens.scan_output, "time_step": tokens.time_step})
        g = torch.Generator().manual_seed(tokens.layer)
        kept = torch.stack([torch.randperm(n, generator=g)[:keep] for _ in range(batch)])
        kept = kept.sort(1).values if self.raster else kept
        away = kept[:, :, None] - torch.arange(n)
        return keep_tokens(kept, (2 * away.abs() + (away > 0)).argmin(1))  # of two that are as near the one before


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method of this file is registered for its tests only."""
    tokenreduce.methods()
    monkeypatch.setitem(registry._registry, Dropping.name, Dropping)


def maps_of(model: nn.Module) -> dict[int, TokenMap]:
    return dict(report(model).maps)


@rules
@pytest.mark.parametrize("method", ["tome", "hsa", "kmeans", "dropping_scanned"])
@pytest.mark.parametrize("row", [VIM, VIDEOMAMBA], ids=lambda row: row.name)
@torch.no_grad()
def test_what_is_left_is_scanned_as_if_restored(row: Backbone, method: str, conv: str, gap: str) -> None:
    """And the class token is read, whose rank is another one in each image."""
    model, images = fresh_model(row).double(), row.images(3).double()
    patch(model, method, schedule=TWICE, scan_conv=conv, scan_gap=gap)
    found, maps = model(images), maps_of(model)
    assert [*maps] == [0, 2] and report(model).tokens_left == 20
    unpatch(model)
    slow = SlowVim(model, conv, gap)
    expected = model.head(model.norm_f(slow(images, maps)[:, 0]))
    if row is VIM:
        ranks = [int((places < model.class_place).sum()) for places in slow.rank[:, 1:]]
        assert len({*ranks}) > 1, "class tokens of several ranks"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_rules_are_different() -> None:
    """Each of them changes the outputs; the tests above would not see if a rule fell back to another."""
    outputs = [patch(fresh_model(VIM), "tome", schedule=TWICE, scan_conv=c, scan_gap=g)(VIM.images()) for c, g in RULES]
    for i, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-5 for other in outputs[:i])
    assert torch.equal(
        patch(fresh_model(VIM), "tome", schedule=TWICE)(VIM.images()), outputs[RULES.index(("stand_in", "size"))]
    )


@rules
@every_backbone(of_vim)
def test_nothing_removed_changes_nothing_whatever_the_rules(backbone: Backbone, conv: str, gap: str) -> None:
    with checks.shared(backbone) as model:
        if {conv, gap} & backbone.refused_rules:
            with pytest.raises(InvalidValueError, match="cannot do: "):
                patch(model, "tome", ratio=0, scan_conv=conv, scan_gap=gap)
            return
        for budget in ({"ratio": 0}, {"flops": 1}, {"r": 0}):
            patch(model, "tome", **budget, scan_conv=conv, scan_gap=gap)
            assert checks.same(checks.everything(model, backbone, backbone.inputs()), checks.plain(backbone))


@pairs(first=METHODS, everywhere=METHODS, where=of_scans)
@torch.no_grad()
def test_outputs_of_every_method_stand_in_order(backbone: Backbone, method: str) -> None:
    with checks.shared(backbone) as model:
        patch(model, method, ratio=0.5)
        backbone.outputs(model, backbone.inputs(3))
        maps = maps_of(model)
        assert maps
        for token_map in maps.values():
            assert (token_map.representatives().diff(dim=1) >= 0).all()


@torch.no_grad()
def test_the_order_of_outputs_does_not_count() -> None:
    """A method may give its outputs in any order: they are sorted. Left unsorted they are scanned in disorder."""
    images = VIM.images(3)

    def run(raster: bool) -> Tensor:
        return patch(fresh_model(VIM), "dropping_scanned", schedule=TWICE, raster=raster)(images)

    assert torch.equal(run(True), run(False))


@torch.no_grad()
def test_disorder_is_far_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = VIDEOMAMBA.images(8), fresh_model(VIDEOMAMBA)
    whole = model(images)
    patch(model, "dropping_scanned", schedule=Schedule.keep({0: 56}), scan_conv="compact")
    ordered = (model(images) - whole).norm()
    monkeypatch.setattr(running, "in_order", lambda token_map: token_map)
    assert (model(images) - whole).norm() > 2 * ordered


@torch.no_grad()
def test_methods_see_scan_outputs_and_time_steps() -> None:
    """Of image tokens: what enters `out_proj`, and the mean over directions of the steps after softplus, unflipped."""
    model, images, seen = fresh_model(VIM), VIM.images(), {}
    mixer = model.layers[0].mixer
    for name in ("out_proj", "dt_proj", "dt_proj_b"):
        hook = lambda module, args, out, name=name: seen.update({name: args[0] if name == "out_proj" else out})  # noqa: E731
        getattr(mixer, name).register_forward_hook(hook)
    model(images)
    patch(model, "dropping_scanned", schedule=Schedule.keep({0: 40}))
    expected = dict(seen)
    model(images)
    at = model.class_place
    image = [place for place in range(65) if place != at]
    steps = (F.softplus(expected["dt_proj"]) + F.softplus(expected["dt_proj_b"])) / 2
    torch.testing.assert_close(Dropping.shown["time_step"], steps[:, image], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Dropping.shown["scan_output"], expected["out_proj"][:, image], rtol=1e-4, atol=1e-5)


@every_backbone(of_scans)
def test_costs_are_what_is_counted(backbone: Backbone) -> None:
    """To the last multiply-add, of the model itself."""
    with checks.shared(backbone) as model, torch.no_grad():
        _, part, adapter = tokenreduce.patching.finding.find_backbone(model)
        geometry = adapter.geometry(part)
        n = (backbone.count,) * geometry.depth
        counted = tokenreduce.count_flops(part, backbone.images(1))
        assert counted.total == geometry.costs.macs(n, n, geometry.protected, "mid") and not counted.uncounted


MET = [(method, 0.7) for method in VIM.methods] + [(m, 0.6) for m in ("tome", "ward", "hsa", "mtr", "random")]


@pytest.mark.parametrize(("method", "share"), MET)
@torch.no_grad()
def test_budgets_are_met_by_every_method(method: str, share: float) -> None:
    with checks.shared(VIM) as model:
        whole = tokenreduce.count_flops(model, VIM.images(1)).total
        patch(model, method, flops=share)
        counted = tokenreduce.count_flops(model, VIM.images(1))
        assert report(model).flops_share == pytest.approx(share, abs=0.02)
        assert counted.total / whole == pytest.approx(share, abs=0.02) and not counted.uncounted


@pytest.mark.parametrize("gap", GAPS)
def test_training_reaches_every_parameter(gap: str) -> None:
    model = patch(fresh_model(VIM).train(), "mtr", ratio=0.5, scan_gap=gap)
    model(VIM.images()).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@torch.no_grad()
def test_all_tokens_come_back_where_they_were() -> None:
    """With the class token in the middle again, and in raster order."""
    model, images = fresh_model(VIM), VIM.images()
    for layer in model.layers:
        nn.init.zeros_(layer.mixer.out_proj.weight)
    before = model.forward_features(images)
    patch(model, "random", ratio=0.5, restore=True)
    restored, kept = model.forward_features(images), report(model).map.rep
    assert restored.shape == before.shape and torch.equal(restored[:, 32], before[:, 32])
    places = (kept + (kept >= 32))[..., None].expand(-1, -1, 32)
    assert torch.equal(restored.gather(1, places), before.gather(1, places))
    patch(model, "tome", ratio=0.5)
    reduced = model.forward_features(images)
    assert reduced.shape == (2, 33, 32) and torch.equal(reduced[:, 16], before[:, 32])
    assert torch.equal(model(images), model.forward_head(before)), "the class token is read where it is now"


def test_rules_are_recorded(tmp_path: Any) -> None:
    file = tmp_path / "patch.json"
    model = patch(fresh_model(VIM), "hsa", flops=0.7, scan_conv="zeros", scan_gap="frozen")
    expected = model(VIM.images())
    tokenreduce.save_patch(model, file)
    loaded = tokenreduce.load_patch(fresh_model(VIM), file)
    assert torch.equal(loaded(VIM.images()), expected)
    again = patch(fresh_model(VIM), schedule=file)
    assert torch.equal(again(VIM.images()), expected)
    other = patch(fresh_model(VIM), schedule=file, scan_conv="compact")
    assert not torch.equal(other(VIM.images()), expected)
    tokenreduce.save_patch(patch(fresh_model(BY_NAME["timm_vit"]), "tome", flops=0.7), file)
    assert "scan" not in file.read_text()
    tokenreduce.load_patch(fresh_model(VIM), file)(VIM.images())


def test_rules_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown scan_conv 'dense'; valid: auto, compact, stand_in, zeros"):
        patch(fresh_model(VIM), "tome", flops=0.7, scan_conv="dense")
    with pytest.raises(ValueError, match="unknown scan_gap 'none'"):
        patch(fresh_model(VIM), "tome", flops=0.7, scan_gap="none")
    for rule in ({"scan_conv": "zeros"}, {"scan_gap": "hold"}):
        with pytest.raises(ValueError, match=r"for state-space models, and timm .* is none; leave them out"):
            patch(fresh_model(BY_NAME["timm_vit"]), "tome", flops=0.7, **rule)


def test_what_is_no_state_space_model_says_so() -> None:
    for method in ("hsa", "mtr"):
        with pytest.raises(ValueError, match=f"{method} cannot run on this .*, but the model is no state-space model"):
            patch(fresh_model(BY_NAME["timm_vit"]), method, flops=0.7)
    for method in ("evit", "diffrate", "gtp", "zero_tprune"):
        with pytest.raises(
            ValueError, match=f"{method} cannot run on this .*, but the model is a state-space model, which"
        ):
            patch(fresh_model(VIM), method, flops=0.7)


def test_other_mixers_are_refused() -> None:
    model = fresh_model(VIM)
    model.layers[1].mixer = type("Mixer", (type(model.layers[1].mixer),), {})(32)
    with pytest.raises(ValueError, match="mixers are of class Mixer"):
        patch(model, "tome", flops=0.7)
