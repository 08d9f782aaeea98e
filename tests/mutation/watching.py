"""Run tests inside of this process: with a watch on the lines that each one executes, or with a changed module."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

Say = Callable[[dict[str, Any]], None]
COLLECTING = 300  # seconds


class Watch:
    """A pytest plugin: the lines of `files` that each test executes, and how long it takes."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.files = {str(root / file): file for file in files}
        self.caches = [*self.files, *(str(path) for path in (root / "tests").rglob("*.py"))]
        self.lines: set[tuple[str, int]] = set()
        self.shared: dict[str, set[tuple[str, int]]] = {}
        self.at_import: set[tuple[str, int]] = set()
        self.tests: dict[str, dict[str, Any]] = {}
        self.wrong: set[str] = set()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        return self.line if frame.f_code.co_filename in self.files else None

    def line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.lines.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self.line

    def begin(self) -> None:
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def pytest_collection_finish(self) -> None:
        self.at_import = self.lines

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._forget()
        self.lines = set()
        self.begin()  # whatever the last test did to it
        start = time.perf_counter()
        result = yield
        seconds = time.perf_counter() - start
        for name in getattr(item, "fixturenames", ()):
            self.lines |= self.shared.get(name, set())
        self.tests[item.nodeid] = {"seconds": round(seconds, 3), "lines": by_file(self.lines)}
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """What a shared fixture executes counts for all tests that ask for it."""
        if fixturedef.scope == "function":
            return (yield)
        before, self.lines = self.lines, set()
        try:
            return (yield)
        finally:
            self.shared[fixturedef.argname], self.lines = self.lines, before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.wrong.add(report.nodeid)

    def _forget(self) -> None:
        """Empty the caches of functions: each test then executes what it depends on."""
        for module in list(sys.modules.values()):
            if getattr(module, "__file__", None) in self.caches:
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()


class Judge:
    """A pytest plugin: the named tests only, in this order, and the first that fails is said."""

    def __init__(self, tests: dict[str, float], say: Say) -> None:
        self.tests, self.say = tests, say
        self.now = "collecting"
        self.failed: list[str] = []
        signal.signal(signal.SIGALRM, self.late)
        signal.alarm(COLLECTING)

    def late(self, number: int, frame: FrameType | None) -> None:
        self.say({"outcome": "timeout", "by": self.now})
        os._exit(0)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        there = {item.nodeid: item for item in items}
        items[:] = [there[name] for name in self.tests if name in there]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = nodeid
        signal.alarm(int(20 + 5 * self.tests[nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Changed(importlib.abc.MetaPathFinder):
    """Serves a changed syntax tree in place of one module's file."""

    def __init__(self, root: Path, file: str, tree: ast.Module) -> None:
        self.name, self.path = module_name(file), root / file
        self.code = compile(tree, str(self.path), "exec")

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=Loader(name, str(self.path), self.code))


class Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self.changed = code

    def get_code(self, fullname: str) -> CodeType:
        return self.changed


def watch(root: Path, files: Sequence[str], test_file: str, say: Say) -> None:
    """Say what each test of `test_file` executes."""
    plugin, before = Watch(root, files), set(sys.modules)
    plugin.begin()
    code = _pytest([test_file], plugin)
    sys.settrace(None)
    modules = sorted(name for name in set(sys.modules) - before if _is_installed(sys.modules[name]))
    for name in plugin.wrong:
        plugin.tests.pop(name, None)
    at_import, wrong = by_file(plugin.at_import), sorted(plugin.wrong)
    say({"code": code, "tests": plugin.tests, "wrong": wrong, "at_import": at_import, "modules": modules})


def judge(tests: dict[str, float], say: Say, changed: Changed | None = None) -> None:
    """Say whether one of the tests fails with the changed module, or without any change."""
    if changed:
        sys.meta_path.insert(0, changed)
    plugin = Judge(tests, say)
    code = _pytest(sorted({name.split("::")[0] for name in tests}), plugin, *(["-x"] if changed else []))
    if code == pytest.ExitCode.OK:
        say({"outcome": "survived"})
    elif code == pytest.ExitCode.NO_TESTS_COLLECTED:
        say({"outcome": "error", "by": "none of the tests was found"})
    else:
        say({"outcome": "killed", "by": (plugin.failed or [plugin.now])[0], "all": plugin.failed})


def _pytest(files: Sequence[str], plugin: object, *options: str) -> int:
    from hypothesis import HealthCheck, settings

    calm: Any = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("mutants", **calm)
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as scratch:
        places = ["-p", "no:cacheprovider", f"--basetemp={scratch}/tests", "--hypothesis-profile=mutants"]
        return int(pytest.main([*files, *places, *options], plugins=[plugin]))


def _is_installed(module: ModuleType) -> bool:
    return "site-packages" in (getattr(module, "__file__", None) or "")


def module_name(file: str) -> str:
    """`a/b.py` -> `a.b`, `a/__init__.py` -> `a`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def by_file(lines: set[tuple[str, int]]) -> dict[str, list[int]]:
    files: dict[str, list[int]] = {}
    for file, line in sorted(lines):
        files.setdefault(file, []).append(line)
    return files
