"""The examples of other runtimes, on a tiny model: right results, and rows of all that was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
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
