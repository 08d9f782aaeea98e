"""Which tests can see a change: those that execute its lines, the cheapest of every file first."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import forks
import watching
from changes import Change

FIRST = 40
HOURS = 3600


class Seen:
    """What the tests of some files execute, from what `watching.watch` said of each file."""

    def __init__(self, root: Path, records: Iterable[dict[str, Any]]) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}
        self.by_line: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.by_file: dict[str, set[str]] = defaultdict(set)
        self.at_import: set[tuple[str, int]] = set()
        self.wrong: list[str] = []
        self.modules: set[str] = set()
        for record in records:
            self.wrong += record["wrong"]
            self.modules |= set(record["modules"])
            self.at_import |= {(file, line) for file, lines in record["at_import"].items() for line in lines}
            for name, test in record["tests"].items():
                self._add(name, test)

    def _add(self, name: str, test: dict[str, Any]) -> None:
        self.seconds[name] = test["seconds"]
        for file, lines in test["lines"].items():
            self.by_file[file].add(name)
            for line in lines:
                self.by_line[file, line].add(name)

    def tests(self, change: Change) -> list[list[str]]:
        """The tests that can see a change, in batches: first a few cheap ones of many files, then all others."""
        places = [(change.file, line) for line in change.lines]
        names = set(chain.from_iterable(self.by_line.get(place, ()) for place in places))
        batches = self._ordered(names)
        # What acts at import can be seen by all that use the module, or a module that imports it.
        if change.at_import or any((change.file, line) in self.at_import for line in _one(change)):
            files = [change.file, *importers(self.root, change.file)]
            users = set(chain.from_iterable(self.by_file.get(file, ()) for file in files))
            batches += self._ordered(users - names)
        return batches

    def _ordered(self, names: set[str]) -> list[list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names, key=lambda name: (self.seconds[name], name)):
            files[name.split("::")[0]].append(name)
        turns = [name for turn in zip_longest(*files.values()) for name in turn if name]
        rest = sorted(turns[FIRST:], key=lambda name: self.seconds[name])
        return [batch for batch in (turns[:FIRST], rest) if batch]


def _one(change: Change) -> range:
    """The line itself: a header's `lines` are those of the whole function, which no import executes."""
    return range(change.line, change.line + 1)


def importers(root: Path, file: str) -> Iterator[str]:
    """The files of the project that import a file."""
    package, _, stem = watching.module_name(file).rpartition(".")
    importing = re.compile(
        rf"^\s*(from {re.escape(package)}\.{stem} import|import {re.escape(package)}\.{stem}\b"
        rf"|from {re.escape(package)} import [^\n]*\b{stem}\b)",
        re.MULTILINE,
    )
    for path in sorted((root / "tokenreduce").rglob("*.py")):
        if importing.search(path.read_text()):
            yield path.relative_to(root).as_posix()


def watch_all(root: Path, folder: Path, files: Sequence[str], tests: Sequence[Path], workers: int) -> Seen:
    """Watch every one of the files `tests` once; what is known of a file holds until it, its helpers or the package
    change."""
    base = digest([*(root / "tokenreduce").rglob("*.py"), *(root / "patches").rglob("*.py"), *helpers(root)])
    kept = {p.as_posix(): folder / f"{base}-{digest([root / p])}.json" for p in tests}
    work = {name: partial(watching.watch, root, files, name) for name, path in kept.items() if not path.exists()}
    jobs = deque(forks.Job(name, one, HOURS) for name, one in work.items())
    for done, (name, record) in enumerate(forks.run(jobs, workers, folder / "logs"), 1):
        print(f"watched {done} of {len(work)}: {name}", file=sys.stderr, flush=True)
        if record.get("code") not in (0, 1, 5):
            raise SystemExit(f"{name} does not run: {record.get('outcome', record.get('code'))}, see {folder / 'logs'}")
        kept[name].write_text(json.dumps(record))
    return Seen(root, (json.loads(path.read_text()) for path in kept.values()))


def in_any(path: Path, places: Sequence[str]) -> bool:
    return any(path.is_relative_to(place.rstrip("/")) for place in places)


def helpers(root: Path) -> list[Path]:
    return [p for p in (root / "tests").rglob("*.py") if not p.name.startswith("test_") and p.parent.name != "mutation"]


def digest(paths: Iterable[Path]) -> str:
    text = hashlib.sha256()
    for path in sorted(paths):
        text.update(path.name.encode() + b"\0" + path.read_bytes())
    return text.hexdigest()[:12]
