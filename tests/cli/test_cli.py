"""The command line: what it lists, and how it ends."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tokenreduce
from tokenreduce import cli


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
