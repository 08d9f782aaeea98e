"""Make mutants of the core, one small change each, and count how many the tests of `make test` find.

python tests/mutation/run.py            run the mutants that have no result yet, then write the report
python tests/mutation/run.py --show     list the mutants
python tests/mutation/run.py --only 17  run mutant 17 alone, again
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import forks
import seen
import watching
from changes import Change, draw

ROOT = Path(__file__).parents[2]
ROOMS = tuple(
    f"tokenreduce/{room}" for room in ("forward", "maps", "budget", "reducers/parts", "lab/speed", "lab/quality")
)
# Tests of `make test` that take long and see little that faster ones do not: what kills without them, kills with them.
SLOW = ("tests/laws/test_compilers.py", "tests/laws/test_onnx.py", "tests/mutation")
REPORT = ROOT / "benchmarks" / "results" / "mutants.json"
WORK = ROOT / "out" / "mutants"
KILLED = ("killed", "timeout", "crash")


def main() -> None:
    arguments = parsed()
    changes = draw(ROOT, ROOMS, arguments.count, arguments.seed)
    chosen = {i: c for i, c in enumerate(changes) if is_chosen(i, c, arguments)}
    if arguments.show:
        print("\n".join(f"{i:4}  {change}" for i, change in chosen.items()))
        return
    os.chdir(ROOT)
    forks.preload()
    files = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    tests = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    tests = [path for path in tests if seen.in_any(path, arguments.tests or ["tests"]) and not seen.in_any(path, SLOW)]
    known = seen.watch_all(ROOT, WORK / "seen", files, tests, arguments.workers)
    forks.preload(sorted(known.modules))
    results = Results(WORK / "results.jsonl", arguments.tests, again=arguments.only is not None)
    run_all(chosen, known, results, arguments.workers)
    found = {i: results.of(change) for i, change in chosen.items()}
    for i, result in found.items():
        if result["outcome"] not in KILLED:
            print(f"{i:4}  {result['outcome']}  {chosen[i]}")
    killed = sum(result["outcome"] in KILLED for result in found.values())
    print(f"killed {killed} of {len(found)}; {len(known.wrong)} tests fail without a change: {known.wrong}")
    if arguments.only is None and not arguments.file and not arguments.tests:
        REPORT.write_text(json.dumps(report(arguments.seed, list(chosen.values()), results, known), indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="mutants; more begin with the same ones as fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="N", help="mutant N alone, again")
    parser.add_argument("--file", help="only the mutants of files below this path")
    parser.add_argument(
        "--tests", nargs="+", default=[], help="only the tests below these paths: for trying things out"
    )
    parser.add_argument("--show", action="store_true", help="list the mutants and stop")
    return parser.parse_args()


def is_chosen(number: int, change: Change, arguments: argparse.Namespace) -> bool:
    inside = not arguments.file or seen.in_any(Path(change.file), [arguments.file])
    return inside and arguments.only in (None, number)


class Results:
    """Results on disk, so that a run that was stopped goes on. New tests may kill what survived, so it runs again."""

    def __init__(self, path: Path, only: Sequence[str], again: bool) -> None:
        self.path, self.again = path, again
        self.package = seen.digest([*(ROOT / "tokenreduce").rglob("*.py"), *(ROOT / "patches").rglob("*.py")])
        self.tests = " ".join([seen.digest((ROOT / "tests").rglob("*.py")), *only])
        lines = path.read_text().splitlines() if path.exists() else []
        records = [record for record in map(json.loads, lines) if record["package"] == self.package]
        self.records = {record["change"]: record for record in records}

    def of(self, change: Change) -> dict[str, Any]:
        return self.records[change.key]

    def is_known(self, change: Change) -> bool:
        record = self.records.get(change.key)
        return bool(record and not self.again and (record["outcome"] in KILLED or record["tests"] == self.tests))

    def add(self, change: Change, result: dict[str, Any]) -> None:
        record = {"change": change.key, **result, "package": self.package, "tests": self.tests}
        self.records[change.key] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def run_all(chosen: dict[int, Change], known: seen.Seen, results: Results, workers: int) -> None:
    """Run the mutants; then the tests that killed some without any change, for one that fails so has proved nothing."""
    mutants = {i: change for i, change in chosen.items() if not results.is_known(change)}
    waiting = {i: known.tests(change) for i, change in mutants.items()}
    start = time.monotonic()
    jobs = deque(job(i, mutants[i], batches.pop(0), known) for i, batches in waiting.items() if batches)
    done = 0
    for i in mutants:
        if i not in {one.key for one in jobs}:
            results.add(mutants[i], {"outcome": "unseen"})
            done += 1
    for i, result in forks.run(jobs, workers, WORK / "logs"):
        if result["outcome"] == "survived" and waiting[i]:
            jobs.appendleft(job(i, mutants[i], waiting[i].pop(0), known))
            continue
        if result["outcome"] == "error":
            raise SystemExit(f"{mutants[i]}: {result['by']}")
        results.add(mutants[i], result)
        done += 1
        spent = time.monotonic() - start
        print(f"{done}/{len(mutants)}  {spent:.0f} s  {i}: {result['outcome']}  {mutants[i]}", file=sys.stderr)
    confirm(chosen, known, results)


def job(number: int, change: Change, names: Sequence[str], known: seen.Seen) -> forks.Job:
    tests = {name: known.seconds[name] for name in names}
    limit = watching.COLLECTING + 5 * sum(tests.values()) + 20
    return forks.Job(number, partial(judge, change, tests), limit)


def judge(change: Change, tests: dict[str, float], say: watching.Say) -> None:
    watching.judge(tests, say, watching.Changed(ROOT, change.file, change.apply()))


def confirm(chosen: dict[int, Change], known: seen.Seen, results: Results) -> None:
    killers = {result["by"] for change in chosen.values() if (result := results.of(change)).get("by") in known.seconds}
    tests = {name: known.seconds[name] for name in sorted(killers)}
    if not tests:
        return
    jobs = deque([forks.Job("unchanged", partial(watching.judge, tests), seen.HOURS)])
    ((_, result),) = forks.run(jobs, 1, WORK / "logs")
    if result["outcome"] != "survived":
        raise SystemExit(f"these tests fail without a change too, so they prove nothing: {result.get('all', result)}")


def report(seed: int, changes: Sequence[Change], results: Results, known: seen.Seen) -> dict[str, Any]:
    outcomes = [results.of(change)["outcome"] for change in changes]
    survivors = [change for change, outcome in zip(changes, outcomes, strict=True) if outcome not in KILLED]
    return {
        "rooms": ROOMS,
        "seed": seed,
        "tests": len(known.seconds),
        "run": len(changes),
        "killed": len(changes) - len(survivors),
        "timeouts": outcomes.count("timeout"),
        "survivors": [str(change) for change in survivors],
    }


if __name__ == "__main__":
    main()
