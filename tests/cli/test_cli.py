"""The command line end to end, on the shipped model and images."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import tokenreduce
from tokenreduce import cli
from tokenreduce.cli import app as application
from tokenreduce.cli import demo
from tokenreduce.cli import visualize as visualization
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.shipped import fashion_vit

ROW = {"method", "budget", "macs", "uncounted", "flops_share", "tokens_left", "top1", "top5", "top1_change"}
ROW |= {"class_error", "token_error"}


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights for as long as none ship."""
    if not fashion_vit.WEIGHTS.exists():
        torch.manual_seed(0)
        save_file(fashion_vit.build().state_dict(), tmp_path / "fashion_vit.safetensors")
        monkeypatch.setattr(fashion_vit, "WEIGHTS", tmp_path / "fashion_vit.safetensors")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command and gives its output on a wide terminal; its errors are raised."""

    def invoke(*arguments: object) -> str:
        monkeypatch.setattr("tokenreduce.cli.output.console.width", 200)
        result = CliRunner().invoke(application.app, [str(a) for a in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return invoke


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = json.loads(path.read_text())
    assert {"command", "settings", "environment", "rows"} == data.keys()
    return data["rows"], data["settings"]


def test_demo(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "BATCH", 5)
    output = run("demo", "--limit", 20, "--out", tmp_path / "out", "--json", tmp_path / "demo.json")
    rows, settings = read(tmp_path / "demo.json")
    assert settings["images"] == 20
    arms = [(row["method"], row["budget"]) for row in rows]
    shares = ("flops=0.8", "flops=0.6", "flops=0.45")
    assert arms == [("unpatched", None), *((m, s) for m in demo.METHODS for s in shares)]
    assert {"ward", "tome", "random", "pool"} <= set(demo.METHODS)
    for row in rows:
        assert row.keys() == ROW | {"images_per_second", "speedup"}
    for row in rows[1:]:
        assert row["flops_share"] == pytest.approx(float(row["budget"].removeprefix("flops=")), abs=0.02)
    for heading in ("MACs", "share", "top-1", "change", "class error", "images/s", "speed-up", "tokens left"):
        assert heading in output
    best = min((row for row in rows if row["budget"] == "flops=0.6"), key=lambda row: row["class_error"])
    assert f"At 60% of the compute {best['method']} stays closest" in output
    for name in ("tradeoff.png", "tokens.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000


def test_demo_says_what_cannot_be_reached(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ROUNDS", 1), ("METHODS", ("random", "pool")), ("BUDGETS", (0.9, 0.8, 0.1))):
        monkeypatch.setattr(demo, name, value)
    output = run("demo", "--limit", 3, "--out", tmp_path, "--json", tmp_path / "demo.json")
    rows, _ = read(tmp_path / "demo.json")
    refused = [row for row in rows if "refused" in row]
    assert [(row["method"], row["budget"]) for row in refused] == [("pool", "flops=0.1")]
    assert "pool at flops=0.1 was not run: flops=0.1 cannot be reached" in output
    assert "reachable minimum" in output


def test_summary_says_when_nothing_is_gained() -> None:
    slow = {"method": "tome", "budget": "flops=0.6", "class_error": 0.01, "top1_change": -0.005, "speedup": 0.9}
    assert demo.summary([slow]) == [
        "At 60% of the compute tome stays closest to the unpatched model (class error 0.0100): top-1 changes by "
        "-0.50 points.",
        "Every method is slower than the unpatched model: on this machine reduction does not pay.",
    ]
    assert len(demo.summary([slow | {"speedup": 1.1}])) == 1


def test_eval(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("eval", "--method", "tome,random", "--r", "5,9", "--limit", 12, "--json", tmp_path / "eval.json")
    rows, settings = read(tmp_path / "eval.json")
    assert settings["images"] == 12 and settings["model"] == "fashion_vit" and settings["head"] == "trained"
    assert [(row["method"], row["budget"], row["tokens_left"]) for row in rows] == [
        ("unpatched", None, 196),
        ("tome", "r=5", 136),
        ("tome", "r=9", 88),
        ("random", "r=5", 136),
        ("random", "r=9", 88),
    ]
    assert all(row.keys() == ROW for row in rows)
    assert "token error" in output and "1 - cosine" in output


def test_eval_passes_options_on(run: Callable[..., str], tmp_path: Path) -> None:
    run("eval", "--method", "random", "--option", "seed=3", "--r", 9, "--limit", 4, "--json", tmp_path / "a.json")
    run("eval", "--method", "random", "--r", 9, "--limit", 4, "--json", tmp_path / "b.json")
    errors = [read(tmp_path / name)[0][1]["token_error"] for name in ("a.json", "b.json")]
    assert errors[0] != errors[1]


def test_eval_of_a_folder_with_neighbours(run: Callable[..., str], tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for shade, name in ((40, "dark"), (220, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (64, 48), (shade, shade + i, shade)).save(tmp_path / split / name / f"{i}.png")
    choice = ("--model", "vit_tiny_patch16_224", "--no-pretrained", "--data", tmp_path, "--workers", 0)
    run("eval", *choice, "--head", "knn", "--method", "random", "--r", 4, "--json", tmp_path / "e.json")
    rows, settings = read(tmp_path / "e.json")
    assert settings["images"] == 2
    assert rows[0]["top1"] == rows[1]["top1"] == 1.0
    with pytest.raises(InvalidValueError, match=r"has 1000 classes, .* has 2: the labels do not fit"):
        run("eval", *choice, "--method", "random", "--r", 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--head", "linear", "--r", "4"], "unknown head 'linear'; valid: knn, trained, zero-shot"),
        (["--head", "zero-shot", "--r", "4"], "give --text-embeddings FILE"),
        (["--method", "tme", "--r", "4"], "unknown method 'tme'"),
        (["--method", "pool,random", "--flops", "0.05"], "the reachable minimum"),
        (["--data", "imagenet", "--r", "4"], "give --data-dir"),
        (["--model", "resnet18", "--no-pretrained", "--r", "4"], "holds no backbone that tokenreduce knows"),
    ],
)
def test_eval_refuses_with_a_sentence(run: Callable[..., str], arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=sentence):
        run("eval", *arguments)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `visualize` hands over to be drawn: (pixels, rows, grid) of each picture, which is drawn all the same."""
    seen: list[tuple[Any, ...]] = []
    draw = visualization.draw_methods

    def spy(pixels: Any, rows: Any, grid: Any, path: Path) -> None:
        seen.append((pixels, rows, grid))
        draw(pixels, rows, grid, path)

    monkeypatch.setattr(visualization, "draw_methods", spy)
    return seen


def test_visualize(run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "new" / "tokens.png"
    methods = "tome,token_transforming,evit"
    output = run("visualize", "--method", methods, "--r", 9, "--option", "tome.metric=features", "--out", out)
    [(pixels, rows, grid)] = drawn
    assert pixels.shape == (1, 28, 28) and grid == (14, 14)
    assert [row.name for row in rows] == ["tome\nr=9", "token_transforming\nr=9", "evit\nr=9"]
    for row in rows:
        counts = {0: 187, 2: 169, 5: 142, 8: 115, 11: 88}
        assert list(row.maps) == [f"after layer {layer}\n{n} tokens" for layer, n in counts.items()]
        assert [token_map.count for token_map in row.maps.values()] == list(counts.values())
        assert all(token_map.entered == 196 for token_map in row.maps.values())
        assert float(row.sizes.sum()) == pytest.approx(196, abs=0.01) and len(row.sizes) == 88
    assert "tome at r=9: 196 -> 88 image tokens" in output and f"wrote {out}" in output.replace("\n", "")
    with Image.open(out) as picture:
        assert picture.width > 1000 and picture.height > 500


def test_visualize_draws_the_sizes_after_the_last_layer_it_shows(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    run("visualize", "--layers", "4,1", "--r", 10, "--out", tmp_path / "a.png")
    run("visualize", "--layers", "1", "--method", "pool", "--r", 0, "--out", tmp_path / "b.png")
    [(_, [row], _), (_, [nothing], _)] = drawn
    assert list(row.maps) == ["after layer 1\n176 tokens", "after layer 4\n146 tokens"]
    assert len(row.sizes) == 146 and row.sizes.sum() == 196
    assert list(nothing.maps) == ["after layer 1\n196 tokens"] and (nothing.sizes == 1).all()


def test_visualize_shows_what_the_model_sees(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    """A wide image, red left and green right around a blue middle: the crop shows the middle, in its colours."""
    wide = Image.new("RGB", (400, 200), (0, 0, 100))
    wide.paste((255, 0, 0), (0, 0, 80, 200))
    wide.paste((0, 255, 0), (320, 0, 400, 200))
    wide.save(tmp_path / "wide.png")
    choice = ("--image", tmp_path / "wide.png", "--r", 5, "--out", tmp_path / "out.png")
    run("visualize", *choice)
    run("visualize", *choice, "--model", "vit_tiny_patch16_224", "--no-pretrained")
    run("visualize", "--r", 5, "--out", tmp_path / "out.png", "--model", "vit_tiny_patch16_224", "--no-pretrained")
    (grey, _, _), (colour, _, grid), (shipped, _, _) = drawn
    assert grey.shape == (1, 28, 28) and set(grey.unique().tolist()) == {11}, "the luminance of blue"
    assert colour.shape == (3, 224, 224) and grid == (14, 14)
    assert torch.allclose(colour, torch.tensor([0, 0, 100 / 255])[:, None, None].expand(3, 224, 224), atol=0.01)
    assert shipped.shape == (3, 224, 224) and torch.equal(shipped[0], shipped[2]) and float(shipped.std()) > 0.1


def test_visualize_goes_on_where_a_method_cannot(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    output = run("visualize", "--method", "pool,random", "--ratio", 0.99, "--out", tmp_path / "a.png")
    assert [row.name for row in drawn[0][1]] == ["random\nratio=0.99"]
    assert "pool at ratio=0.99 was not run: ratio=0.99 asks for 1 of 196" in output


ADAPTIVE = [name for name in tokenreduce.methods() if tokenreduce.describe(name)["adaptive"]]


def test_visualize_adaptive_methods_without_a_budget(
    run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]
) -> None:
    names = ADAPTIVE[:2]
    output = run("visualize", "--method", ",".join(names), "--out", tmp_path / "a.png")
    assert [row.name for row in drawn[0][1]] == names
    assert f"{names[0]}: 196 -> " in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image", "nowhere.png", "--r", "4"], "--image nowhere.png is no file; give a PNG or JPEG file"),
        (["--image", __file__, "--r", "4"], "is not an image that Pillow can read; give a PNG"),
        (["--layers", "0,12", "--r", "4"], "--layers names layer 12; the model has 12 layers, choose from 0 to 11"),
        (["--layers", "first", "--r", "4"], "--layers is 'first'; give whole numbers separated by commas"),
        (["--out", "tokens.txt", "--r", "4"], "unknown kind of picture in --out '.txt'; valid: .jpg, .pdf, .png, .svg"),
        (["--method", "tome,tme", "--r", "4"], "unknown method 'tme'"),
        (["--method", "pool", "--ratio", "0.99"], "ratio=0.99 asks for 1 of 196 image tokens"),
        (["--model", "resnet18", "--no-pretrained", "--r", "4"], "holds no backbone that tokenreduce knows"),
    ],
)
def test_visualize_refuses_with_a_sentence(run: Callable[..., str], arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(sentence)):
        run("visualize", *arguments)


def test_errors_end_with_one_sentence_instead_of_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tokenreduce", "eval", "--method", "tme", "--r", "4"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("tokenreduce: unknown method 'tme'")


def test_methods(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("methods", "--json", tmp_path / "methods.json")
    facts = json.loads((tmp_path / "methods.json").read_text())
    assert [fact["name"] for fact in facts] == tokenreduce.methods()
    assert all(name in output for name in tokenreduce.methods())


def test_bare_install_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "typer" else found(name))
    with pytest.raises(SystemExit, match=r"needs typer, which the extra 'bench' brings: pip install 'tokenreduce\[be"):
        cli.main()
