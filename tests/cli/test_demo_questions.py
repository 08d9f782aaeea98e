"""`tokenreduce demo --task vlm` end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_rows import read

from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.quality import demo_vlm


def test_demo_of_vision_language(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["divprune", "fastv", "random"]
    monkeypatch.setattr(demo_vlm, "compatible", lambda model: SimpleNamespace(language=names))
    out, file = tmp_path / "out", tmp_path / "demo.json"
    output = run("demo", "--task", "vlm", "--limit", 5, "--out", out, "--json", file)
    rows, settings = read(file)
    arms = [(name, f"keep={keep}") for name in names for keep in (0.5, 0.25, 0.1)]
    assert [(row["method"], row["budget"]) for row in rows] == [("unpatched", None), *arms]
    assert settings["task"] == "vlm" and settings["images"] == 5 and settings["questions"] == 20
    shares = {(row["method"], row["budget"]): row["kv_share"] for row in rows}
    assert shares["unpatched", None] == 1 > shares["divprune", "keep=0.5"] > shares["divprune", "keep=0.1"]
    assert shares["random", "keep=0.1"] == shares["divprune", "keep=0.1"] < shares["fastv", "keep=0.1"]
    for row in rows:
        low, high = row["exact_interval"]
        assert 0 <= low <= row["exact"] <= high <= 1
    for heading in ("exact", "over random", "agreement", "KV, KiB", "KV share"):
        assert heading in output
    assert "scene_vlm on 20 questions about 5 scenes" in output and "At keep=0.25" in output
    for name in ("accuracy.png", "kept.png"):
        assert (out / name).stat().st_size > 10_000


def test_it_has_a_model_of_its_own(run: Callable[..., str]) -> None:
    with pytest.raises(InvalidTypeError, match="--task vlm has a model of its own"):
        run("demo", "--task", "vlm", "--model", "fashion_vit")
