"""Which family carries which method: five checks of every pair, on one small random model a family.

    python benchmarks/compatibility.py                              # resumes where it stopped; an hour on two cores
    python benchmarks/compatibility.py --checks exact,oracle,restore --part 0/2

The checks are those of the test suite (tests/backbone_checks.py). Cells go to runs/compatibility/ and to
benchmarks/results/compatibility.json, from which `make_table.py --write` makes docs/backbones.md. What the code of now
has measured is done; cells of earlier code stay until they are asked for, and say at which commit they were measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import timm  # noqa: F401  adapters load only when their library is there
import torch
from arm_files import fingerprint, here
from origins import earlier

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import backbone_checks  # noqa: E402
from backbones import BACKBONES, Backbone, shared_model  # noqa: E402
from choosing import exportable  # noqa: E402

import tokenreduce  # noqa: E402
from tokenreduce.lab.environment import environment  # noqa: E402
from tokenreduce.patching.finding import find_backbone  # noqa: E402

CHECKS = {
    "exact": backbone_checks.check_exact,
    "oracle": backbone_checks.check_oracle,
    "compile": backbone_checks.check_compile,
    "export": backbone_checks.check_export,
    "restore": backbone_checks.check_restore,
}
FOLDER = ROOT / "runs" / "compatibility" / fingerprint({})
RESULTS = ROOT / "benchmarks" / "results" / "compatibility.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--method", default=",".join(tokenreduce.methods("encoder")))
    parser.add_argument("--part", default="0/1", help="I/K: only every K-th family, to share the work among processes")
    return parser.parse_args()


def families() -> dict[str, Backbone]:
    """The first row of every adapter."""
    found: dict[str, Backbone] = {}
    for backbone in BACKBONES:
        found.setdefault(find_backbone(shared_model(backbone.name))[2].name, backbone)
    return found


def applies(check: str, backbone: Backbone, method: str) -> bool:
    if check == "oracle":
        return backbone_checks.has_oracle(backbone, method)
    if check in ("compile", "export"):
        return backbone.traceable and exportable(method)
    return True


def outcome(check: str, backbone: Backbone, method: str) -> str:
    """ "pass", "fail: ..." or "does not apply"."""
    if not applies(check, backbone, method):
        return "does not apply"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHECKS[check](backbone, method)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return f"fail: {type(error).__name__} {lines[0]}"
    return "pass"


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    index, parts = map(int, args.part.split("/"))
    every, commit = families(), here()
    for name, backbone in list(every.items())[index::parts]:
        file = FOLDER / f"{name}.json"
        known: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
        refused = tokenreduce.compatible(shared_model(backbone.name)).refused
        for method in args.method.split(","):
            cell = known.setdefault(method, {})
            cell.setdefault("measured", commit)
            if method in refused:
                known[method] = cell | {"refused": refused[method]}
            for check in args.checks.split(",") if method not in refused else ():
                if check not in cell:
                    cell[check] = outcome(check, backbone, method)
            file.write_text(json.dumps(known, indent=1) + "\n")
        wrong = {f"{m} {c}": r for m, cell in known.items() for c, r in cell.items() if r.startswith("fail")}
        print(name, f"{len(known)} methods", wrong or "", flush=True)
    collect(every)


def collect(every: dict[str, Backbone]) -> None:
    before = {row["adapter"]: row["methods"] for row in json.loads(RESULTS.read_text())["rows"]}
    rows: list[dict[str, Any]] = []
    for name, backbone in every.items():
        file = FOLDER / f"{name}.json"
        old = {method: {"measured": earlier("compatibility")} | cell for method, cell in before.get(name, {}).items()}
        methods = old | (json.loads(file.read_text()) if file.exists() else {})
        if methods:
            adapter = find_backbone(shared_model(backbone.name))[2]
            rows.append({"adapter": name, "family": adapter.family, "methods": methods})
    RESULTS.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
