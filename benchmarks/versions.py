"""Which versions the library runs with: makes an environment for each, installs the library and runs the laws in it.

    python benchmarks/versions.py                          # all environments, hours; what this code has not run yet
    python benchmarks/versions.py --only oldest --tests tests/forward,tests/ops
    python benchmarks/versions.py --again --only newest    # also what has been run

Environments lie in runs/versions/ (several GB each; remove them when done) and are used again. Results go to
benchmarks/results/versions.json, from which `make_table.py --write` makes docs/versions.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from origins import earlier

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
PINNED = ("torch", "torchvision", "timm", "transformers")
# Python, then the releases; the first is the oldest of everything that pyproject.toml allows.
ENVIRONMENTS = {
    "oldest": ("3.10", "2.10.0", "0.25.0", "1.0.20", "5.18.0"),
    "torch 2.11": ("3.11", "2.11.0", "0.26.0", "1.0.28", "5.20.0"),
    "torch 2.12": ("3.12", "2.12.1", "0.27.1", "1.0.28", "5.20.2"),
    "newest": ("3.13", "2.14.1", "0.29.1", "1.0.31", "5.23.0"),
}
# The laws of every day, the methods, the kernels, the forward and the verbs; the lab and the command line are left out.
TESTS = ("tests/ops", "tests/reducers", "tests/forward", "tests/patching", "tests/patches", "tests/laws")
TOOLS = ("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "scikit-learn>=1.4", "scipy>=1.11", "peft>=0.21")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ENVIRONMENTS), help="names of environments")
    parser.add_argument("--tests", default=",".join(TESTS), help="files and folders")
    parser.add_argument("--keyword", default="", help="of the tests only those that fit, as with pytest -k")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "versions", help="where environments are kept")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--again", action="store_true", help="run also what the results file has")
    return parser.parse_args()


def interpreter(version: str) -> str | None:
    """The command of this Python, if one is there and starts: shims are found for versions that are not there."""
    found = shutil.which(f"python{version}")
    if found is None:
        return None
    return found if subprocess.run([found, "--version"], capture_output=True).returncode == 0 else None


def install(python: str, folder: Path, pins: Iterable[str]) -> str:
    """Make the environment unless it is there; why it could not be made, or nothing."""
    done = folder / "installed"
    if done.exists():
        return ""
    extras = f"{ROOT}[timm,transformers,open-clip,clustering]"
    commands = (
        [python, "-m", "venv", str(folder)],
        [str(folder / "bin/python"), "-m", "pip", "install", *pins, *TOOLS, "-e", extras],
    )
    for command in commands:
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            return f"not installed: {reason(ended.stderr)}"
    done.touch()
    return ""


def reason(said: str) -> str:
    """The last line of what a command said, but for pip's notice that a newer pip is there."""
    lines = [line for line in said.splitlines() if line.strip() and "[notice]" not in line]
    return lines[-1] if lines else "no reason given"


def run_tests(folder: Path, tests: str, keyword: str, workers: str) -> dict[str, Any]:
    """Counts, seconds and the names of tests that failed."""
    report = folder / (tests.replace("/", "_") + ".xml")
    report.unlink(missing_ok=True)
    command = [str(folder / "bin/python"), "-m", "pytest", tests, "-n", workers, f"--junitxml={report}"]
    start = time.perf_counter()
    ended = subprocess.run([*command, *(["-k", keyword] if keyword else [])], cwd=ROOT, capture_output=True, text=True)
    if not report.exists():
        return {"why": f"pytest stopped: {reason(ended.stderr)}"}
    return counts(ElementTree.parse(report).getroot()) | {"seconds": round(time.perf_counter() - start)}


def counts(root: ElementTree.Element) -> dict[str, Any]:
    """What a JUnit report says: a test that has a failure or an error has failed."""
    cases = list(root.iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases if case not in failed)
    names = sorted(f"{case.get('classname')}::{case.get('name')}" for case in failed)
    return {
        "passed": len(cases) - len(failed) - skipped,
        "failed": len(failed),
        "skipped": skipped,
        "failures": names,
    }


def installed(folder: Path) -> dict[str, str]:
    """The versions that are really there."""
    names = ", ".join(f"{name!r}: version({name!r})" for name in PINNED)
    code = (
        f"import json, platform; from importlib.metadata import version; "
        f"print(json.dumps({{'python': platform.python_version(), {names}}}))"
    )
    return json.loads(subprocess.check_output([str(folder / "bin/python"), "-c", code], text=True))


def measure(name: str, tests: str, options: argparse.Namespace, stamped: str = "") -> dict[str, Any]:
    """One row: an environment and a part of the tests."""
    version, *releases = ENVIRONMENTS[name]
    wanted = {"python": version} | dict(zip(PINNED, releases, strict=True))
    row: dict[str, Any] = {"environment": name, "tests": tests, "keyword": options.keyword}
    row |= {"date": datetime.date.today().isoformat(), "measured": stamped}
    python, folder = interpreter(version), options.folder / name.replace(" ", "_")
    if python is None and not (folder / "installed").exists():
        return row | wanted | {"why": f"no interpreter found: python{version}"}
    why = install(str(python), folder, [f"{key}=={value}" for key, value in wanted.items() if key != "python"])
    if why:
        return row | wanted | {"why": why}
    return row | installed(folder) | run_tests(folder, tests, options.keyword, options.workers)


def read() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def write(new: dict[str, Any]) -> None:
    """Put a row in the place of that of the same tests; the file is read again, as other runs may have written."""
    rows = [row for row in read() if (row["environment"], row["tests"]) != (new["environment"], new["tests"])]
    rows = [{**row, "measured": row.get("measured", earlier("versions"))} for row in rows] + [new]
    order = list(ENVIRONMENTS)
    rows.sort(key=lambda row: (order.index(row["environment"]), row["tests"]))
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Environments by rows, oldest first: what ran in each, or why it did not."""
    lines = [
        "| Python | torch | timm | transformers | tests | passed | failed | skipped | date |",
        "|---|---|---|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        chosen = f"`{row['tests']}`" + (f', `-k "{row["keyword"]}"`' if row["keyword"] else "")
        found = [row["why"], "", ""] if "why" in row else [str(row[key]) for key in ("passed", "failed", "skipped")]
        cells = [*(row[key] for key in ("python", "torch", "timm", "transformers")), chosen, *found, row["date"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from arm_files import same_code, stamp  # needs torch, which the table does not

    options = parse()
    stamped = stamp({})
    for name in options.only.split(","):
        for tests in options.tests.split(","):
            known = [row for row in read() if (row["environment"], row["tests"]) == (name, tests)]
            done = known and "why" not in known[0] and same_code(known[0].get("measured", ""), stamped)
            if done and not options.again:
                continue
            row = measure(name, tests, options, stamped)
            print(json.dumps({key: value for key, value in row.items() if key != "failures"}), file=sys.stderr)
            write(row)


if __name__ == "__main__":
    main()
