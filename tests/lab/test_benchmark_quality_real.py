"""The part of benchmarks/quality.py on a real model: its arithmetic, and all of it with a small random model."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reals import real
from scripts import script
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.environment import environment
from tokenreduce.lab.lanes import restored_lane
from tokenreduce.lab.quality.bootstrap import draw

quality, quality_real, quotients = script("quality"), script("quality_real"), script("quotients")
arm_files = script("arm_files")
ERRORS = ("class_error", "token_error", "saliency_error")
SIDE = 32


def test_quotients_against_one_draw_of_photographs_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    own, tome = (torch.rand(7, generator=generator).double() + 0.1 for _ in range(2))
    own[3] = 0.0  # an image without any error
    sources = [0, 1, 2, 0, 1, 2, 0]
    found = quotients.of_tome("x", own, tome, quotients.source_weights(torch.tensor(sources), 80))
    means, images = [], []
    for often in draw(3, 80).tolist():  # how often each photograph was drawn
        squares = [i for photograph, times in enumerate(often) for _ in range(int(times)) for i in range(7)
                   if sources[i] == photograph]  # fmt: skip
        means.append(sum(float(own[i]) for i in squares) / sum(float(tome[i]) for i in squares))
        logs = [math.log(max(float(own[i]), 1e-9) / float(tome[i])) for i in squares]
        images.append(math.exp(sum(logs) / len(logs)))
    ratios = [max(float(a), 1e-9) / float(b) for a, b in zip(own, tome, strict=True)]
    assert found.keys() == {f"x_of_tome{end}" for end in ("", "_interval", "_geometric", "_geometric_interval")}
    assert found["x_of_tome"] == pytest.approx(float(own.sum() / tome.sum()))
    assert found["x_of_tome_geometric"] == pytest.approx(math.prod(ratios) ** (1 / 7))
    for name, values in (("x_of_tome_interval", means), ("x_of_tome_geometric_interval", images)):
        assert list(found[name]) == pytest.approx(np.quantile(values, (0.025, 0.975)).tolist())


def test_squares_of_one_photograph_make_no_interval_narrower() -> None:
    own, tome = torch.tensor([0.2, 0.6, 0.4]).double(), torch.tensor([1.0, 0.9, 0.5]).double()
    few = quotients.of_tome("x", own, tome, quotients.source_weights(torch.arange(3)))
    many = quotients.of_tome("x", own.repeat(5), tome.repeat(5), quotients.source_weights(torch.arange(3).repeat(5)))
    assert many == {name: pytest.approx(value) for name, value in few.items()}


def test_other_settings_and_other_code_count_as_not_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tokenreduce/reducers/methods").mkdir(parents=True)
    (tmp_path / "tokenreduce/cli").mkdir()
    method, command = tmp_path / "tokenreduce/reducers/methods/tome.py", tmp_path / "tokenreduce/cli/app.py"
    method.write_text("a = 1")
    command.write_text("a = 1")
    monkeypatch.setattr(arm_files, "ROOT", tmp_path)
    first = arm_files.fingerprint({"images": 3})
    assert first != arm_files.fingerprint({"images": 4})
    command.write_text("a = 2")
    assert first == arm_files.fingerprint({"images": 3}), "the command line decides no figure"
    method.write_text("a = 2")
    assert first != arm_files.fingerprint({"images": 3})


def picture(path: Path, seed: int, side: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return path


def test_a_folder_holds_photographs_and_folders_with_one_photograph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quality_real, "installed", lambda: [tmp_path / "china.png"])
    assert quality_real.chosen(None) == {"china": tmp_path / "china.png"}
    folder = tmp_path / "more"
    picture(folder / "Autumn/screenshot.png", 0, 10)
    large = picture(folder / "Autumn/images/40x40.png", 1, 40)
    picture(folder / "Autumn/images/20x20.png", 2, 20)
    single = picture(folder / "Dune.png", 3)
    found = quality_real.chosen(folder)
    assert found == {"china": tmp_path / "china.png", "Autumn": large, "Dune": single}


class Brightness(nn.Module):
    """A dense head of tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[..., :3].sigmoid()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark with a small random model, three photographs and few methods; returns the model."""
    torch.manual_seed(0)
    shape = {"img_size": SIDE, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = VisionTransformer(**shape).eval()
    for name, value in {"BUDGETS": (0.8, 0.1), "RUNS": tmp_path / "runs", "RESULTS": tmp_path}.items():
        monkeypatch.setattr(quality, name, value)
    files = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate(("cat", "dog", "cup"))]
    monkeypatch.setattr(quality_real, "installed", lambda: files)
    monkeypatch.setattr(quality_real, "SIZE", SIDE)
    monkeypatch.setattr(quality_real, "methods_at", lambda size: ["random", "rlt", "tome"])
    monkeypatch.setattr(quality_real.dinov2_small, "dinov2_small", lambda image_size: model)
    monkeypatch.setattr(quality_real.dinov2_small, "saliency_head", Brightness)
    return model


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Runs the command; returns the arms that were measured."""
    command = ["quality.py", "--model", "dinov2_small", "--size", str(SIDE), "--count", "7", *arguments]
    measured: list[str] = []
    measure = quality_real.measure_arm

    def spy(model: Any, head: Any, arm: Arm, *rest: Any) -> Any:
        measured.append(str(arm))
        return measure(model, head, arm, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", command)
        patched.setattr(quality_real, "measure_arm", spy)
        quality.main()
    return measured


def test_a_small_model_end_to_end(small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arms = [f"{name} at flops={share}" for name in ("tome", "random", "rlt") for share in (0.8, 0.1)]
    assert run(monkeypatch) == arms
    first = (tmp_path / "quality_real.json").read_text()
    data = json.loads(first)
    assert data | {"rows": 0} == {
        **{"model": "dinov2_small", "image_size": SIDE, "images": 7, "draws": quotients.DRAWS},
        **{"photographs": ["cat", "dog", "cup"], "further": False, "arms_left": 0, "rows": 0},
        "environment": environment(),
    }
    full, tome, unreached, random, *refused = data["rows"]
    assert full == {"method": "unpatched", "budget": None, "macs": full["macs"], "flops_share": 1.0}
    assert [(row["method"], row["budget"]) for row in (tome, random)] == [(n, "flops=0.8") for n in ("tome", "random")]
    assert "reachable minimum" in unreached["refused"] and {r["method"] for r in refused} == {"random", "rlt"}
    assert all(row["flops_share"] == pytest.approx(0.8, abs=0.02) for row in (tome, random))
    errors = {name: slow_errors(small, Arm(name, flops=0.8), tmp_path) for name in ("tome", "random")}
    for i, name in enumerate(ERRORS):
        mine, theirs = errors["random"][:, i], errors["tome"][:, i]
        assert random[name] == pytest.approx(float(mine.mean()), rel=1e-4)
        assert random[f"{name}_of_tome"] == pytest.approx(float(mine.mean() / theirs.mean()), rel=1e-4)
        logs = (mine / theirs).log()
        assert random[f"{name}_of_tome_geometric"] == pytest.approx(float(logs.mean().exp()), rel=1e-3)
        assert tome[f"{name}_of_tome"] == 1 and tome[f"{name}_of_tome_geometric_interval"] == [1, 1]

    files = sorted((tmp_path / "runs/quality_real").glob("*/*"))
    assert [path.name for path in files] == [
        f"{name}_{share}.npz" for name in ("random", "rlt", "tome") for share in (0.1, 0.8)
    ]
    files[1].unlink()
    assert run(monkeypatch) == ["random at flops=0.8"], "what is there is not measured again"
    assert (tmp_path / "quality_real.json").read_text() == first


def slow_errors(model: Any, arm: Arm, folder: Path) -> Tensor:
    """Class, token and saliency error of each square, one square at a time, `(7, 3)`."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    files = [folder / f"{name}.png" for name in ("cat", "dog", "cup")]
    squares, _ = quality_real.photographs(7, SIDE, files=files)
    patched, rows = restored_lane(model, arm), []
    for square in squares:
        image = ((square.permute(1, 2, 0) / 255 - mean) / deviation).permute(2, 0, 1)[None]
        with torch.inference_mode():
            ours, theirs = (one.forward_features(image)[0] for one in (model, patched))
        cosines = 1 - nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
        saliency = (ours[1:, :3].sigmoid() - theirs[1:, :3].sigmoid()).abs().mean()
        rows.append(torch.stack([cosines[0], cosines[1:].mean(), saliency.double()]))
    return torch.stack(rows)


def test_some_methods_now_and_others_later(small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def rows() -> tuple[int, list[str]]:
        data = json.loads((tmp_path / "mine.json").read_text())
        return data["arms_left"], [row["method"] for row in data["rows"] if row["budget"] == "flops=0.8"]

    assert run(monkeypatch, "--method", "pool", "--name", "mine") == [
        f"{name} at flops={share}" for name in ("tome", "pool") for share in (0.8, 0.1)
    ]
    assert rows() == (4, ["tome", "pool"])
    assert run(monkeypatch, "--method", "random", "--name", "mine") == ["random at flops=0.8", "random at flops=0.1"]
    assert rows() == (2, ["tome", "random"])


@pytest.mark.parametrize(("size", "name", "methods"), [(224, "quality_real", 24), (518, "quality_real_518", 5)])
def test_sizes_have_files_and_methods_of_their_own(size: int, name: str, methods: int) -> None:
    assert quality_real.result_name(size) == name
    assert len(quality_real.methods_at(size)) >= methods and "tome" in quality_real.methods_at(size)


@real
def test_the_real_model_on_two_photographs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    monkeypatch.setattr(quality, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(quality, "BUDGETS", (0.6,))
    command = ["quality.py", "--model", "dinov2_small", "--count", "2", "--method", "random"]
    monkeypatch.setattr(sys, "argv", command)
    quality.main()
    _, tome, random = json.loads((tmp_path / "quality_real.json").read_text())["rows"]
    assert tome["flops_share"] == pytest.approx(0.6, abs=0.01)
    assert all(0 < tome[name] < random[name] < 1 for name in ERRORS), "merging is better than dropping at random"
