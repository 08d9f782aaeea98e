"""`advise`: from figures made up here, and from the shipped ones only what holds for any figures."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel
from typer.testing import CliRunner

import tokenreduce
from tokenreduce import InvalidTypeError, InvalidValueError, advise
from tokenreduce.cli.app import app
from tokenreduce.forward.stack import _thread
from tokenreduce.lab.shipped.dinov2_small import dinov2_small
from tokenreduce.lab.shipped.fashion_vim import fashion_vim
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.speed import advising, break_even
from tokenreduce.lab.speed.advising import FLOPS, METHODS
from tokenreduce.lab.speed.break_even import Curve, nearest_curve, shipped_curves
from tokenreduce.lab.speed.command import bench_command
from tokenreduce.ops.native import dispatch

ROOT = Path(__file__).parents[2]
COUNTS = (16, 64, 256)
# At width 192 tome alone pays, at 384 ward alone, both from 64 tokens on.
FIGURES = {
    (192, "ward"): (0.8, 0.9, 0.95),
    (192, "tome"): (0.9, 1.2, 1.4),
    (384, "ward"): (0.9, 1.2, 1.6),
    (384, "tome"): (0.7, 0.8, 0.9),
}


def row(width: int, method: str, tokens: int, speedup: float) -> dict[str, Any]:
    interval = [speedup - 0.05, speedup + 0.05]
    return {"width": width, "method": method, "tokens": tokens, "speedup": speedup, "speedup_interval": interval}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [row(*key, *point) for key, gains in FIGURES.items() for point in zip(COUNTS, gains, strict=True)]
    path = tmp_path / "break_even.json"
    path.write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(break_even, "SHIPPED", path)


def vit(side: int, width: int = 384, **changes: Any) -> nn.Module:
    """A model with `side`^2 image tokens."""
    shape = {"img_size": 4 * side, "patch_size": 4, "embed_dim": width, "depth": 4, "num_heads": width // 64}
    return VisionTransformer(**(shape | {"num_classes": 3} | changes)).eval()


def images(side: int, batch: int = 1, **changes: Any) -> Tensor:
    return torch.randn(batch, 3, 4 * side, 4 * side, **changes)


# advise


def test_a_wide_model_with_many_tokens_pays(figures: None) -> None:
    model = vit(12)
    advice = advise(model, images(12))
    assert (advice.pays, advice.method, advice.flops) == (True, "ward", FLOPS)
    assert (advice.tokens, advice.width, advice.batch_size, advice.device) == (144, 384, 1, "cpu")
    assert advice.break_even_tokens == 64 and 1.2 < advice.expected_speedup < 1.6
    assert str(advice).startswith("reduction pays, about 1.")
    assert 'tokenreduce.patch(model, "ward", flops=0.6)' in str(advice)
    exec(advice.run, {"tokenreduce": tokenreduce, "model": model})
    assert tokenreduce.report(model).method == "ward"


def test_a_narrow_model_with_few_tokens_does_not(figures: None) -> None:
    advice = advise(vit(4, 192), images(4))
    assert (advice.pays, advice.tokens, advice.expected_speedup) == (False, 16, 0.8)
    assert advice.break_even_tokens is None and "no break-even up to 256" in advice.reason
    assert "does not pay" in str(advice) and "tokenreduce.patch" not in str(advice)


def test_fewer_tokens_than_were_measured(figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = (Curve(384, "ward", COUNTS, g, g) for g in ((0.9, 1.2, 1.6), (1.1, 1.2, 1.6)))
    model, reasons = vit(3), []
    for curve, expected in ((known, False), (unknown, None)):
        monkeypatch.setattr(advising, "nearest_curve", lambda width, method, curve=curve: curve)
        advice = advise(model, images(3))
        assert advice.pays is expected and advice.expected_speedup is None
        reasons.append(advice.reason)
    assert "the break-even is 64" in reasons[0] and "16, the fewest that were measured, pay" in reasons[1]


def test_the_other_method_is_advised_where_only_it_pays(figures: None) -> None:
    advice = advise(vit(8, 192), images(8))
    assert (advice.pays, advice.method, advice.expected_speedup) == (True, "tome", 1.2)


def test_tokens_are_those_of_the_input(figures: None) -> None:
    model = vit(4, dynamic_img_size=True)
    assert [advise(model, images(side)).tokens for side in (4, 10)] == [16, 100]
    video = VideoMAEConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=192)
    video.image_size, video.num_frames = 64, 4
    assert advise(VideoMAEModel(video).eval(), torch.randn(1, 4, 3, 64, 64)).tokens == 2 * 4 * 4


def test_a_batch_gets_a_yes_but_no_no(figures: None) -> None:
    yes, no = advise(vit(12), images(12, 3)), advise(vit(4), images(4, 3))
    assert (yes.pays, no.pays) == (True, None)
    assert yes.batch_size == 3 and yes.tokens == 144
    assert all("batch 3 was not measured" in advice.reason for advice in (yes, no))


@pytest.mark.parametrize(("change", "words"), [({"device": "meta"}, "on meta"), ({"dtype": torch.float64}, "float64")])
def test_what_was_not_measured_is_not_known(figures: None, change: dict[str, Any], words: str) -> None:
    advice = advise(vit(12), images(12, **change))
    assert advice.pays is advice.break_even_tokens is advice.expected_speedup is None
    assert words in advice.reason and advice.tokens == 144 and "not known" in str(advice)


def test_widths_and_families_that_no_curve_stands_for(figures: None) -> None:
    assert "width 64 was measured" in advise(vit(4, 64), images(4)).reason
    windows = VisionTransformerSAM(
        **{"img_size": 48, "patch_size": 4, "embed_dim": 384, "depth": 6, "num_heads": 6, "window_size": 4},
        global_attn_indexes=(0, 1, 2, 4, 5),
    )
    advice = advise(windows.eval(), images(12))
    assert advice.pays is None and "some layers of this one need all" in advice.reason


def test_model_and_input_stay_as_they_are(figures: None) -> None:
    model, batch = vit(12).train(), images(12, 2)
    before = copy.deepcopy(model), batch.clone(), torch.get_rng_state()
    runs = list(_thread.runs)  # other tests may have left some
    modules = [(module, type(module), set(vars(module)), module.training) for module in model.modules()]
    advise(model, batch)
    assert modules == [(module, type(module), set(vars(module)), module.training) for module in model.modules()]
    assert not any(hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))
    assert torch.equal(batch, before[1]) and torch.equal(torch.get_rng_state(), before[2])
    assert _thread.runs == runs
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before[0].parameters(), strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_patched_model_is_judged_as_if_it_were_not_and_stays_patched(figures: None) -> None:
    model = vit(12)
    plain = advise(model, images(12))
    tokenreduce.patch(model, "pool", flops=0.9)
    reduction = vars(model)["_tokenreduce"]
    assert advise(model, images(12)) == plain
    assert vars(model)["_tokenreduce"] is reduction and tokenreduce.report(model).method == "pool"


@pytest.mark.parametrize("model", [nn.Linear(2, 2), vit(4, 192, block_fn=ParallelScalingBlock)])
def test_what_patch_refuses_is_refused_in_the_same_words(model: nn.Module) -> None:
    with pytest.raises(InvalidValueError) as by_patch:
        tokenreduce.patch(model, METHODS[0], flops=FLOPS)
    with pytest.raises(InvalidValueError) as by_advise:
        advise(model, images(4))
    assert str(by_advise.value) == str(by_patch.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((1, 3, 16, 16), "a tuple"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "torch.uint8 (1, 3, 16, 16)"),
        (torch.zeros(3, 16, 16), "torch.float32 (3, 16, 16)"),
        (torch.zeros(0, 3, 16, 16), "torch.float32 (0, 3, 16, 16)"),
    ],
)
def test_wrong_inputs(given: Any, words: str) -> None:
    with pytest.raises(InvalidTypeError, match="give a batch of images") as error:
        advise(vit(4, 192), given)
    assert words in str(error.value)


def test_a_model_must_be_a_module() -> None:
    with pytest.raises(InvalidTypeError, match="model is str"):
        advise("deit_small_patch16_224", images(4))


def test_missing_kernels_are_said(figures: None) -> None:
    model = vit(4)
    with dispatch.using("reference"):
        assert "compiled kernels, which do not run here" in advise(model, images(4)).reason


# curves


@pytest.mark.parametrize(
    ("lows", "expected"),
    [((0.9, 1.1, 1.2), 64), ((1.1, 0.9, 1.2), 256), ((1.1, 1.2, 1.3), 16), ((1.1, 1.2, 1.0), None)],
)
def test_break_even_holds_for_all_larger_counts(lows: tuple[float, ...], expected: int | None) -> None:
    assert Curve(192, "tome", COUNTS, lows, lows).break_even == expected


def test_outside_of_the_counts_only_what_their_end_settles() -> None:
    late, early, never = (Curve(192, "tome", COUNTS, g, g) for g in ((0.9, 1.1, 1.2), (1.1, 1.2, 1.3), (1.2, 1.1, 0.9)))
    assert [curve.pays(9) for curve in (late, early, never)] == [False, None, False]
    assert [curve.pays(1000) for curve in (late, early, never)] == [True, True, None]
    assert [late.pays(tokens) for tokens in (16, 63, 64, 256)] == [False, False, True, True]
    assert late.speedup_at(15) is late.speedup_at(257) is None


def test_speedups_lie_on_a_line_over_the_logarithm() -> None:
    curve = Curve(192, "tome", COUNTS, (0.8, 1.2, 1.6), (0.8, 1.2, 1.6))
    assert [curve.speedup_at(count) for count in COUNTS] == [0.8, 1.2, 1.6]
    assert curve.speedup_at(32) == pytest.approx(1.0) and curve.speedup_at(128) == pytest.approx(1.4)


def test_the_nearest_width_is_that_of_the_smallest_ratio(figures: None) -> None:
    found = {width: nearest_curve(width, "tome") for width in (90, 96, 271, 272, 768, 800)}
    assert {width: curve and curve.width for width, curve in found.items()} == {
        **{90: None, 96: 192, 271: 192},
        **{272: 384, 768: 384, 800: None},
    }


# the command that checks


def test_commands_are_those_of_models_that_can_be_built_by_name() -> None:
    model = nn.Identity()
    assert bench_command(model, images(4), "tome", 0.6).startswith("from tokenreduce.lab.speed import Arm, compare; ")
    model.pretrained_cfg = {"architecture": "deit_tiny_patch16_224", "input_size": (3, 224, 224)}
    command = "tokenreduce bench --model deit_tiny_patch16_224 --method tome --flops 0.6 --batch-size"
    assert bench_command(model, torch.zeros(2, 3, 224, 224), "tome", 0.6) == f"{command} 2"
    small = torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)
    assert bench_command(model, small, "tome", 0.6) == f"{command} 1 --image-size 64 --dtype bfloat16"
    assert "compare(model" in bench_command(model, torch.zeros(1, 3, 64, 32), "tome", 0.6)
    hugging = ViTModel(ViTConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=1))
    assert "compare(model" in bench_command(hugging, torch.zeros(1, 3, 224, 224), "tome", 0.6)
    hugging.config._name_or_path = hugging.name_or_path = "some/vit"
    assert "--model hf:some/vit " in bench_command(hugging, torch.zeros(1, 3, 224, 224), "tome", 0.6)


@pytest.mark.parametrize(
    ("name", "model", "side"),
    [
        ("dinov2_small", dinov2_small(pretrained=False), None),
        ("dinov2_small", dinov2_small(pretrained=False, image_size=518), 518),
        ("fashion_vit", fashion_vit(pretrained=False), None),
        ("fashion_vim", fashion_vim(pretrained=False), None),
    ],
)
def test_commands_build_the_models_that_ship(name: str, model: nn.Module, side: int | None) -> None:
    shape = load_model(name, side, False)[1]
    size = "" if side is None else f" --image-size {side}"
    command = f"tokenreduce bench --model {name} --method tome --flops 0.6 --batch-size 1{size}"
    assert bench_command(model, torch.zeros(1, *shape), "tome", 0.6) == command


@pytest.mark.parametrize("model", [vit(4, 192), timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2)])
def test_what_the_check_says_can_be_typed(figures: None, model: nn.Module) -> None:
    input = torch.randn(1, 3, *model.patch_embed.img_size)
    check = advise(model, input).check
    if check.startswith("from"):
        with_few_rounds = check.replace("])", "], rounds=1, min_time=0)")
        exec(with_few_rounds, {"model": model, "input": input})
        return
    words = [*shlex.split(check), "--rounds", "1", "--min-time", "0"]
    result = CliRunner().invoke(app, words[1:])
    assert words[0] == "tokenreduce" and result.exit_code == 0, result.output


# what ships


def test_the_shipped_figures_are_the_published_ones_and_whole() -> None:
    published = json.loads((ROOT / "benchmarks/results/break_even.json").read_text())
    assert json.loads(break_even.SHIPPED.read_text()) == published
    assert published["flops"] == FLOPS and published["batch_size"] == 1 and published["device"] == "cpu"
    curves = shipped_curves()
    assert {(c.width, c.method) for c in curves} == {(w, m) for w in (192, 384, 768, 1024) for m in METHODS}
    assert all(len(curve.tokens) >= 3 and curve.tokens == tuple(sorted(curve.tokens)) for curve in curves)
    assert [(line["width"], line["method"], line["tokens"]) for line in published["break_even"]] == [
        (curve.width, curve.method, curve.break_even) for curve in curves
    ]


def test_the_first_method_loses_less_on_the_real_model() -> None:
    """Or `METHODS` needs another order."""
    rows = json.loads((ROOT / "benchmarks/results/quality_real.json").read_text())["rows"]
    found = {row["method"]: row for row in rows if row["budget"] == f"flops={FLOPS}"}
    for error in ("class_error", "token_error", "saliency_error"):
        losses = [found[method][f"{error}_of_tome_geometric"] for method in METHODS]
        assert losses == sorted(losses), error
