"""The mutation run: what it changes, what it draws, how it judges, and that its survivors are explained."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import forks
import pytest
import watching
from changes import Change, changes, draw
from run import REPORT, ROOMS, ROOT
from seen import FIRST, Seen, importers


def made(source: str) -> set[str]:
    return {str(change).split(": ", 1)[1] for change in changes("f.py", source)}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("a < b", {"a < b -> a <= b", "a < b -> a >= b"}),
        ("a is b in c", {"a is b in c -> a is not b in c", "a is b in c -> a is b not in c"}),
        ("a - b", {"a - b -> a + b"}),
        ("a //= b", {"a //= b -> pass", "a //= b -> a *= b"}),
        ("a and b", {"a and b -> a or b"}),
        ("not a", {"not a -> a"}),
        ("-a", {"-a -> a"}),
        ("True", {"True -> False"}),
        ("7", {"7 -> 8", "7 -> 6"}),
        ("x[a:b]", {"a:b -> :b", "a:b -> a:"}),
        ("y = f(a, b)", {"f(a, b) -> f(b, a)"}),
        ("y = f(a, *b)", set()),
        ("y = f(a, a)", set()),
        ("y = min(a)", {"min(a) -> max(a)"}),
        ("y = x.amax()", {"x.amax() -> x.amin()"}),
        ("f()", {"f() -> pass"}),
        ("a if b else c", {"b -> True", "b -> False"}),
        ("if a: x = b", {"a -> True", "a -> False"}),
        ("while a: x = b", {"a -> False"}),
        ("y = [a for a in b if c]", {"c -> True", "c -> False"}),
        ("def f(): return a", {"return a -> return None"}),
        ("def f(): return None", set()),
        ("def f(a=1): return", {"1 -> 2", "1 -> 0"}),
        ("def f(a):\n  a = b", {"a = b -> pass"}),
        ("def f():\n  a = b\n  a = c", {"a = c -> pass"}),
        ("def f(): s.a = b", {"s.a = b -> pass"}),
        ("def __init__(s): s.a = b", set()),
        ("raise E(1, 2)", {"raise E(1, 2) -> pass"}),
        ("for a in b: break", {"break -> pass"}),
    ],
)
def test_each_kind_of_change(source: str, expected: set[str]) -> None:
    assert made(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""1 < 2"""',
        "import a",
        "x = f'{a + 1}'",
        "def f(a: Literal[1] = b) -> Literal[1]: x = c",
        "class A:\n  x: Literal[1] = b",
        "if TYPE_CHECKING: f(a, b)",
        "def __repr__(self): return a + 1",
    ],
)
def test_what_is_never_changed(source: str) -> None:
    assert made(source) == set()


def test_a_change_is_made() -> None:
    names: dict[str, Any] = {}
    (change,) = (c for c in changes("f.py", "def f(a, b):\n    return a + b\n") if "->" in str(c) and " - " in str(c))
    exec(compile(change.apply(), "f.py", "exec"), names)
    assert names["f"](5, 3) == 2
    assert (change.line, str(change)) == (2, "f.py:2: a + b -> a - b")


def test_draws_are_seeded_and_grow() -> None:
    names = [change.key for change in draw(ROOT, ROOMS, 150, 0)]
    assert names == [change.key for change in draw(ROOT, ROOMS, 200, 0)][:150]
    assert len({name.split(": ")[0] for name in names}) == 150, "one change a line"
    assert {room for room in ROOMS if any(name.startswith(room) for name in names)} == set(ROOMS)
    assert names != [change.key for change in draw(ROOT, ROOMS, 150, 1)]


def results_of(*jobs: forks.Job, folder: Path) -> dict[str, Any]:
    return dict(forks.run(deque(jobs), 2, folder))


def test_children_that_hang_or_die(tmp_path: Path) -> None:
    said = results_of(
        forks.Job("says", lambda say: say({"outcome": "survived"}), 600),
        forks.Job("hangs", lambda say: signal.pause(), 0),
        forks.Job("dies", lambda say: os._exit(3), 600),
        folder=tmp_path,
    )
    assert {name: result["outcome"] for name, result in said.items()} == {
        "says": "survived",
        "hangs": "timeout",
        "dies": "crash",
    }


TOY = """
LIMIT = 3

def half(x):
    return x / 2

def unused():
    return 1

def is_big(x):
    return x > LIMIT
"""
TOY_TESTS = """
from toy_house.toy import half, is_big

def test_half():
    assert half(6) == 3

def test_big():
    assert is_big(9)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one module and two tests."""
    for name, text in {"toy_house/toy.py": TOY, "tests/test_toy.py": TOY_TESTS, "conftest.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seen_of(toy: Path) -> Seen:
    job = forks.Job("toy", partial(watching.watch, toy, ["toy_house/toy.py"], "tests/test_toy.py"), 600)
    record = results_of(job, folder=toy)["toy"]
    assert record["code"] == 0, (toy / "1.log").read_text()
    return Seen(toy, [record])


def test_mutants_meet_the_tests_that_execute_them(toy: Path) -> None:
    seen = seen_of(toy)
    by_name = {str(change).split(": ")[1]: change for change in changes("toy_house/toy.py", TOY)}
    half, big = "tests/test_toy.py::test_half", "tests/test_toy.py::test_big"
    assert seen.tests(by_name["x / 2 -> x * 2"]) == [[half]]
    assert seen.tests(by_name["return 1 -> return None"]) == []
    assert sorted(seen.tests(by_name["3 -> 4"])[0]) == [big, half], "acts at import: all that use the module"

    def outcome(name: str) -> dict[str, Any]:
        change: Change = by_name[name]
        tests = {test: seen.seconds[test] for batch in seen.tests(change) for test in batch}

        def work(say: watching.Say) -> None:
            watching.judge(tests, say, watching.Changed(toy, change.file, change.apply()))

        return results_of(forks.Job(name, work, 600), folder=toy)[name]

    assert outcome("x / 2 -> x * 2") == {"outcome": "killed", "by": half, "all": [half]}
    assert outcome("3 -> 4") == {"outcome": "survived"}
    assert outcome("return x > LIMIT -> return None")["by"] == big
    unchanged = forks.Job("as it is", partial(watching.judge, seen.seconds), 600)
    assert results_of(unchanged, folder=toy)["as it is"] == {"outcome": "survived"}


def test_cheap_tests_of_many_files_come_first() -> None:
    seconds = {f"{file}::{i}": i + (file == "b") / 2 for file in "ab" for i in range(FIRST)}
    tests = {name: {"seconds": s, "lines": {"f.py": [1]}} for name, s in seconds.items()}
    seen = Seen(ROOT, [{"tests": tests, "wrong": [], "modules": [], "at_import": {}}])
    first, rest = seen.tests(next(changes("f.py", "def f(): return 1")))
    assert first == [f"{file}::{i}" for i in range(FIRST // 2) for file in "ab"]
    assert rest == sorted(set(seconds) - set(first), key=lambda name: seconds[name])


def test_importers() -> None:
    assert "tokenreduce/maps/places.py" in set(importers(ROOT, "tokenreduce/maps/token_map.py"))
    assert "tokenreduce/maps/token_map.py" not in set(importers(ROOT, "tokenreduce/maps/places.py"))


def test_survivors_are_explained() -> None:
    """Each survivor of the last run has its sentence in the docs, and nothing else has."""
    page = (ROOT / "docs" / "testing.md").read_text()
    explained = re.findall(r"^- `(tokenreduce/\S+:\d+: .+?)`: \w.+$", page, re.MULTILINE)
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {"survivors": [], "run": 0, "killed": 0}
    assert sorted(explained) == sorted(report["survivors"])
    assert report["killed"] + len(report["survivors"]) == report["run"]
    assert report["killed"] >= 0.95 * report["run"]
    assert (f"{report['killed']} of {report['run']} mutants" in page) == REPORT.exists()
