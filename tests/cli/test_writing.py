"""What commands write: checked before the work, kept where writing fails after it; wrong environment variables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenreduce.cli import writing
from tokenreduce.errors import InvalidValueError

COMMANDS = {
    "methods": (),
    "kernels": (),
    "demo": ("--limit", 4),
    "eval": ("--r", 4, "--limit", 4),
    "bench": ("--model", "fashion_vit", "--r", 4, "--batch-size", 1, "--rounds", 1, "--min-time", 0),
}
OUT = {"demo": COMMANDS["demo"], "visualize": ("--r", 4)}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command fails as soon as it works."""

    def works(*arguments: object, **more: object) -> None:
        raise AssertionError("work was done before the file was checked")

    monkeypatch.setattr("tokenreduce.describe", works)
    monkeypatch.setattr("tokenreduce.ops.native.dispatch.status", works)
    for name in ("bench.load_model", "visualize.load_model", "evaluate.classification", "demo.ClassificationDemo"):
        module, _, attribute = name.partition(".")
        monkeypatch.setattr(sys.modules[f"tokenreduce.cli.{module}"], attribute, works)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_checked_before_any_work(command: str, run: Callable[..., str], no_work: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path, reason in {tmp_path: "it is a folder", tmp_path / "file" / "a.json": "is no folder"}.items():
        with pytest.raises(InvalidValueError, match=re.escape(f"--json {path} cannot be written: ") + f".*{reason}"):
            run(command, *COMMANDS[command], "--json", path)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", OUT)
def test_out_is_checked_before_any_work(command: str, run: Callable[..., str], no_work: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / "file" / "a.png"
    with pytest.raises(
        InvalidValueError, match=re.escape(f"--out {path} cannot be written: {tmp_path / 'file'} is no")
    ):
        run(command, *OUT[command], "--out", path)


@pytest.mark.parametrize("command", ["methods", "kernels"])
def test_missing_folders_are_made(command: str, run: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    run(command, "--json", path)
    assert json.loads(path.read_text())
    path.write_text("older")
    run(command, "--json", path)
    assert json.loads(path.read_text()) and [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_results_are_kept_where_the_disk_is_full(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InvalidValueError, match=r"--json /dev/full could not be written .*the results are kept in"):
        run("eval", *COMMANDS["eval"], "--json", "/dev/full")
    [kept] = tmp_path.iterdir()
    assert json.loads(kept.read_text())["command"] == "eval"


def test_an_older_file_survives_a_failure_and_results_are_printed_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text("older")

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    printed: list[object] = []
    monkeypatch.setattr(writing.console, "print", lambda text, **more: printed.append(text))
    with pytest.raises(InvalidValueError, match=r"No space left on device.*the results are printed above"):
        writing.write_data(path, {"rows": [1]})
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]
    assert json.loads(str(printed[0])) == {"rows": [1]}


@pytest.mark.parametrize("variable", ["TOKENREDUCE_KERNELS", "TOKENREDUCE_ATTENTION"])
def test_a_wrong_variable_ends_a_command_with_one_sentence(variable: str) -> None:
    code = "from tokenreduce.cli import main; main()"
    command = [sys.executable, "-c", code, "methods"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, variable: "refrence"}
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"tokenreduce: unknown {variable} 'refrence'")
