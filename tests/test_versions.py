"""`benchmarks/versions.py`: what it reads of a test report, which interpreters it takes, and how its rows are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scripts import script

from tokenreduce.patching.finding import LIBRARIES

ROOT = Path(__file__).parents[1]
versions = script("versions")

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="passes"/>
<testcase classname="tests.a" name="is_skipped"><skipped/></testcase>
<testcase classname="tests.b" name="fails"><failure/></testcase>
<testcase classname="tests.b" name="cannot_start"><error/></testcase>
</testsuite></testsuites>"""


def test_counts_of_a_report() -> None:
    assert versions.counts(ElementTree.fromstring(REPORT)) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["tests.b::cannot_start", "tests.b::fails"],
    }


@pytest.mark.parametrize(("code", "found"), [(0, True), (127, False)])
def test_an_interpreter_that_does_not_start_is_none(
    code: int, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "python3.99"
    shim.write_text(f"#!/bin/sh\nexit {code}\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.interpreter("3.99") == (str(shim) if found else None)
    assert versions.interpreter("3.98") is None


def test_without_an_interpreter_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["versions.py", "--folder", str(tmp_path)])
    row = versions.measure("oldest", "tests/forward", versions.parse())
    assert row["why"] == "no interpreter found: python3.10" and row["torch"] == "2.10.0" and "passed" not in row


def test_rows_take_the_place_of_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "RESULTS", tmp_path / "versions.json")
    for row in (("newest", "a", 1), ("oldest", "b", 2), ("oldest", "a", 3), ("newest", "a", 4)):
        versions.write(dict(zip(("environment", "tests", "passed"), row, strict=True)))
    rows = json.loads((tmp_path / "versions.json").read_text())["rows"]
    found = [(row["environment"], row["tests"], row["passed"]) for row in rows]
    assert found == [("oldest", "a", 3), ("oldest", "b", 2), ("newest", "a", 4)]
    assert [row.get("measured") for row in rows] == [versions.earlier("versions")] * 2 + [None]


def test_the_oldest_environment_has_the_lower_bounds() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    python, torch, _, timm, transformers = versions.ENVIRONMENTS["oldest"]
    assert f'requires-python = ">={python}"' in text
    bounds = {name: re.search(rf'"{name}>=([\d.]+)"', text)[1] for name in ("torch", "timm", "transformers")}  # type: ignore[index]
    for name, release in (("torch", torch), ("timm", timm), ("transformers", transformers)):
        assert f"{release}.".startswith(f"{bounds[name]}.")


def test_old_pips_find_every_extra() -> None:
    """pip 23.0, which comes with Python 3.10, looks for the name as it is written; packages hold it with hyphens."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    extras = re.findall(r"^(\S+) = \[", section, re.MULTILINE)
    own = {name for names in re.findall(r"tokenreduce\[([^]]+)\]", text) for name in names.split(",")}
    hints = {name for hint in LIBRARIES.values() for name in re.findall(r"tokenreduce\[(.+)\]", hint)}
    assert "open-clip" in extras and own | hints <= {*extras}
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in extras)


@pytest.mark.parametrize(
    ("said", "why"),
    [("", "no reason given"), ("no\nERROR: b\n\n[notice] A new release of pip\n[notice] To update\n", "ERROR: b")],
)
def test_why_a_command_failed(said: str, why: str) -> None:
    assert versions.reason(said) == why


def test_the_table_of_versions() -> None:
    common: dict[str, Any] = {"python": "3.10.1", "torch": "2.10", "timm": "1", "transformers": "5", "date": "today"}
    ran = common | {"tests": "tests/a", "keyword": "tome", "passed": 3, "failed": 0, "skipped": 1}
    absent = common | {"tests": "tests/b", "keyword": "", "why": "no interpreter found: python3.10"}
    lines = versions.table([ran, absent]).splitlines()
    assert lines[2] == '| 3.10.1 | 2.10 | 1 | 5 | `tests/a`, `-k "tome"` | 3 | 0 | 1 | today |'
    assert lines[3] == "| 3.10.1 | 2.10 | 1 | 5 | `tests/b` | no interpreter found: python3.10 |  |  | today |"
