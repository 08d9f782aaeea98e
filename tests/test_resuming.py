"""Benchmarks that go on where they stopped: what other code has measured is done again, or says at which commit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import script

arm_files, origins = script("arm_files"), script("origins")


def test_a_stamp_is_of_a_commit_and_of_code_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"status": "", "rev-parse": "abc1234\n"}
    monkeypatch.setattr(origins, "git", lambda *words: said[words[0]])
    first = arm_files.stamp({"images": 3})
    assert first == f"abc1234/{arm_files.fingerprint({'images': 3})}"
    said["status"], said["rev-parse"] = " M tokenreduce/errors.py", "def5678\n"
    later = arm_files.stamp({"images": 3})
    assert later.startswith("def5678+/") and arm_files.same_code(first, later)
    assert not arm_files.same_code(first, arm_files.stamp({"images": 4}))
    assert not arm_files.same_code("", later) and not arm_files.same_code("abc1234/", later)


def test_a_copy_without_history_has_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        raise FileNotFoundError("git")

    monkeypatch.setattr(origins, "git", git)
    assert arm_files.here() == "unknown"


def test_a_note_names_all_commits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(origins, "RESULTS", tmp_path)
    monkeypatch.setattr(origins, "ORIGINS", {"speed": ("make speed", ()), "demo": ("make demo", ())})
    known = {name: {"commit": "fffffff", "date": "today"} for name in ("speed", "demo")}
    monkeypatch.setattr(origins, "known", lambda: known)
    monkeypatch.setattr(origins, "outdated", lambda name: False)
    (tmp_path / "speed.json").write_text(
        json.dumps({"rows": [{"measured": "b/1"}, {"measured": "a/2"}, {"measured": "b/1"}]})
    )
    cells = {
        "rows": {"tome": {"ONNX": "right"}},
        "measured": {"tome": {"ONNX": "c/1", "other": "d/"}, "ward": {"ONNX": "e/"}},
    }
    (tmp_path / "demo.json").write_text(json.dumps(cells))
    assert "at commits a and b.*" in origins.note("speed") and "at commits c, d and e.*" in origins.note("demo")
    (tmp_path / "demo.json").write_text('{"rows": [{"method": "tome"}]}')
    assert "at commit fffffff.*" in origins.note("demo")
    known["demo"]["note"] = "`ward` was another one."
    assert origins.note("demo").endswith("at commit fffffff. `ward` was another one.*\n")
    monkeypatch.setattr(origins, "TABLES", {("a.md", "a"): ("speed", "demo", "absent"), ("b.md", "b"): "demo"})
    made = origins.notes(("a.md", "a"))
    assert "make speed" in made and "make demo" in made and made.count("*`") == 2
    assert origins.notes(("b.md", "b")).count("*`") == 1 and origins.notes(("c.md", "c")) == ""


def test_what_a_script_measures_includes_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "python benchmarks/gpu.py --out DIR && python benchmarks/gpu_collect.py DIR"
    monkeypatch.setattr(origins, "ORIGINS", {"gpu": (command, ("csrc",))})
    assert origins.watched("gpu") == ("csrc", "benchmarks/gpu.py", "benchmarks/gpu_collect.py")


def test_scans_of_other_images_are_not_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scan_rules = script("scan_rules")
    monkeypatch.setattr(scan_rules, "RESULTS", tmp_path / "scans.json")
    monkeypatch.setattr(scan_rules, "RULES", [("stand_in", "size")])
    monkeypatch.setattr(scan_rules.tokenreduce, "compatible", lambda model: ["random"])

    def run(images: int) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["scan_rules.py", "--images", str(images)])
        scan_rules.main()
        return json.loads(scan_rules.RESULTS.read_text())

    assert run(4)["images"] == 4
    found = run(6)
    assert found["images"] == 6 and len(found["rows"]) == 1
    monkeypatch.setattr(scan_rules, "write", lambda *given: pytest.fail("measured again"))
    scan_rules.main()
    assert scan_rules.read(scan_rules.RESULTS, found["rows"][0]["measured"]) == found["rows"]


def test_rows_of_speed_that_stay_say_when_they_were_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speed = script("speed")
    monkeypatch.setattr(speed, "RESULTS", tmp_path / "speed.json")
    facts = {"model": "deit", "batch_size": 8, "budget": "flops=0.6", "speedup": 1.0, "target": None}
    figures = {"limit_share": 1.0, "runs": [{"limit_share": 1.0}]}
    old = [facts | figures | {"method": name} for name in ("tome", "evit")]
    speed.RESULTS.write_text(json.dumps({"rows": old}))
    monkeypatch.setattr(speed, "all_cases", lambda: [speed.Case("deit", 8, name, {}) for name in ("tome", "evit")])
    monkeypatch.setattr(speed, "measure", lambda case, *rest: facts | figures | {"method": case.method, "speedup": 2.0})
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "evit"])
    speed.main()
    kept, new = json.loads(speed.RESULTS.read_text())["rows"]
    assert kept["speedup"] == 1 and kept["measured"] == origins.earlier("speed")
    assert new["speedup"] == 2 and arm_files.same_code(new["measured"], arm_files.stamp({"threads": 2}))


def test_rows_of_an_earlier_gpu_run_keep_their_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    collect = script("gpu_collect")
    (tmp_path / "old.json").write_text('{"gpu": "A", "rows": [{"stage": "env"}, {"stage": "host", "measured": "a"}]}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run/rows.json").write_text('{"gpu": "A", "rows": [{"stage": "trace"}]}')
    monkeypatch.setattr(collect, "here", lambda: "now")
    old, new = (collect.read(tmp_path / name)["rows"] for name in ("old.json", "run"))
    assert [row["measured"] for row in old] == [origins.earlier("gpu"), "a"] and new[0]["measured"] == "now"


def test_cells_of_transforms_are_replaced_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transforms = script("transforms")
    monkeypatch.setattr(transforms, "RESULTS", tmp_path / "transforms.json")
    monkeypatch.setattr(transforms, "FOLDER", tmp_path)
    monkeypatch.setattr(transforms, "models", lambda: {"timm": None})
    monkeypatch.setattr(transforms, "TRANSFORMS", ("vmap",))
    monkeypatch.setattr(transforms, "ROWS", ("tome", "ward"))
    transforms.RESULTS.write_text('{"columns": {"timm": {"vmap": {"tome": "right", "ward": "crash"}}}}')
    assert transforms.known("timm", "vmap") == {}, "what earlier code has run is run again"
    transforms.file("timm", "vmap").write_text('{"ward": "right"}')
    transforms.collect()
    found = json.loads(transforms.RESULTS.read_text())
    assert found["columns"]["timm"]["vmap"] == {"tome": "right", "ward": "right"}
    assert found["measured"]["timm"]["vmap"] == {"tome": origins.earlier("transforms"), "ward": arm_files.here()}


def test_cells_of_targets_are_run_again_where_code_is_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    targets = script("targets")
    monkeypatch.setattr(targets, "RESULTS", tmp_path / "targets.json")
    monkeypatch.setattr(targets, "PACKAGES", ())  # none is there, so that a cell that is run says so
    rows = {name: {"ONNX Runtime": "right: 0e+00", "Core ML": "converts"} for name in ("unpatched", "tome")}
    targets.RESULTS.write_text(json.dumps({"versions": {}, "rows": rows}))
    command = ["targets.py", "--methods", "tome", "--targets", "ONNX Runtime"]
    monkeypatch.setattr(sys, "argv", command)
    targets.main()
    found, before = json.loads(targets.RESULTS.read_text()), origins.earlier("targets")
    assert found["rows"]["tome"] == {"ONNX Runtime": "not run: onnxruntime is not installed", "Core ML": "converts"}
    assert found["rows"]["unpatched"] == rows["unpatched"]
    assert found["measured"]["unpatched"] == dict.fromkeys(rows["tome"], before)
    assert found["measured"]["tome"] == {"ONNX Runtime": arm_files.stamp({}), "Core ML": before}
    found["rows"]["tome"]["ONNX Runtime"] = "right"
    targets.RESULTS.write_text(json.dumps(found))
    targets.main()
    assert json.loads(targets.RESULTS.read_text())["rows"]["tome"]["ONNX Runtime"] == "right", "this code has run it"
    monkeypatch.setattr(sys, "argv", [*command, "--again"])
    targets.main()
    assert json.loads(targets.RESULTS.read_text())["rows"]["tome"]["ONNX Runtime"].startswith("not run")
