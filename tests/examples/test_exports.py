"""The examples of other runtimes, on a tiny model: right results, and rows of all that was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from scripts import example

TINY = ["--batch", "2", "--rounds", "1", "--threads", "1", "--model", "test_vit"]


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module, make = example(name), timm.create_model

    def fixed(model: str, **arguments: Any) -> Any:
        """Three layers; and OpenVINO does not know how timm resizes positions for images of any size."""
        return make(model, **arguments, depth=3, dynamic_img_size=False)

    monkeypatch.setattr(timm, "create_model", fixed)
    return module


def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    rows = load("onnx_export", monkeypatch).main([*TINY, "--out", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    about = json.loads((tmp_path / "rows.json").read_text())
    assert about["rounds"] == 1 and about["load_before"] >= 0 and about["environment"]["machine"]
    assert list(rows) == ["unpatched", "tome"] and rows["unpatched"]["speedup"] == 1
    assert all(row["difference"] < 1e-5 and row["ms"] > 0 for row in rows.values())
    assert rows["tome"]["share"] == pytest.approx(0.6, abs=0.02)
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert {file.suffix for file in tmp_path.iterdir()} >= {".onnx", ".json"}


ROUNDS = ["--method", "ward", "--options", "rounds=3"]  # many operators, which take long to convert


@pytest.mark.parametrize("method", [["--method", "tome"], pytest.param(ROUNDS, marks=pytest.mark.full)], ids=str)
def test_openvino(method: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    rows = load("openvino_export", monkeypatch).main([*TINY, *method, "--out", str(tmp_path)])
    assert list(rows) == ["unpatched", method[1]] and all(row["difference"] < 1e-5 for row in rows.values())
    assert rows[method[1]]["share"] == pytest.approx(0.6, abs=0.02)
    assert {file.name for file in tmp_path.glob("*.xml")} == {f"test_vit_{name}.xml" for name in rows}


def test_openvino_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("openvino", "nncf"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    rows = load("openvino_export", monkeypatch).main([*TINY, "--int8"])
    assert list(rows) == ["unpatched", "unpatched int8", "tome", "tome int8"]
    assert all(1e-4 < rows[f"{name} int8"]["difference"] < 0.3 for name in ("unpatched", "tome"))


def test_gains_are_of_rounds_in_which_all_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down for a while slows all: only ratios within a round say what a model does."""
    runtimes, now, order = example("runtimes"), [0.0], []
    speed = {"whole": 4.0, "fewer": 2.0, "whole in PyTorch": 6.0, "fewer in PyTorch": 2.0}

    def model(name: str) -> Any:
        def call(images: Any) -> Any:
            slow = max(1, len(order) // len(speed) - 2)  # each round is slower than the one before
            order.append(name)
            now[0] += speed[name] * slow
            return images

        return call

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    runs = {"unpatched": model("whole"), "tome": model("fewer")}
    models = {"unpatched": model("whole in PyTorch"), "tome": model("fewer in PyTorch")}
    rows = runtimes.measure(runs, models, torch.ones(2), 4)
    assert rows["tome"]["speedup"] == pytest.approx(2) and rows["tome"]["torch_speedup"] == pytest.approx(3)
    assert rows["tome"]["speedup_interval"] == pytest.approx([2, 2]) and rows["tome"]["difference"] == 0
    turns = [order[12 + 4 * i : 16 + 4 * i] for i in range(4)]
    assert all(set(turn) == set(speed) for turn in turns) and len({turn[0] for turn in turns}) == 4


def test_a_difference_is_one_of_lengths() -> None:
    assert example("runtimes").difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_no_example_hides_a_library() -> None:
    """A script finds modules beside it first."""
    folder = Path(__file__).parents[2] / "examples"
    assert not {path.stem for path in folder.iterdir()} & {
        "onnx",
        "openvino",
        "timm",
        "torch",
        "lightning",
        "open_clip",
    }
