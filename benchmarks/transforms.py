"""What becomes of patched models under the transforms and modes of PyTorch: every method, one small model of timm and
one of transformers with random weights.

    python benchmarks/transforms.py                 # what this code has not run yet; half an hour on two cores
    python benchmarks/transforms.py --part 0/2      # and 1/2 in another process
    python benchmarks/transforms.py --only vmap "ONNX, dynamo=False"    # these again
    python benchmarks/transforms.py --methods ward tome                 # these again, in all columns

The transforms are those of the test suite (tests/transforming.py). Cells go to runs/transforms/ and to
benchmarks/results/transforms.json, from which `make_table.py --write` makes docs/transforms.md; those of earlier code
stay there until they are run again, with the commit of each. Where a method does not fit the small model, the first
family that it fits stands for it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm  # noqa: F401  adapters load only when their library is there
import torch
from arm_files import fingerprint, here
from origins import earlier

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from choosing import main_row  # noqa: E402
from transforming import TRANSFORMS, models, outcome  # noqa: E402

import tokenreduce  # noqa: E402
from tokenreduce.lab.environment import environment  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "transforms.json"
FOLDER = ROOT / "runs" / "transforms" / fingerprint({})
UNPATCHED = "unpatched"
ROWS = (UNPATCHED, *tokenreduce.methods("encoder"))
EXPORTERS = ("onnx", "onnxscript", "onnxruntime")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=TRANSFORMS, help="run these transforms again")
    parser.add_argument("--methods", nargs="+", default=[], help="run these methods again")
    parser.add_argument("--part", default="0/1", help="I/K: only every K-th column, to share the work among processes")
    return parser.parse_args()


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """Exporters write whole graphs to the standard output, from C++ too."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    FOLDER.mkdir(parents=True, exist_ok=True)
    index, parts = map(int, args.part.split("/"))
    names = args.only or [*TRANSFORMS]
    rows = [name for name in ROWS if not args.methods or name in args.methods]
    columns = [(library, transform) for transform in names for library in models()]
    for library, transform in columns[index::parts]:
        again = args.methods or ([*ROWS] if args.only else [])
        cells = {name: found for name, found in known(library, transform).items() if name not in again}
        for name in rows:
            small, method = models()[library], None if name == UNPATCHED else name
            if method is not None and library != "timm" and not small.fits(method):
                continue  # videos and auxiliary heads have one model that stands for them
            row = small if method is None else main_row(method, small)
            if name not in cells:
                with silently():
                    cells[name] = outcome(transform, row, method)
                ordered = {one: cells[one] for one in ROWS if one in cells}
                file(library, transform).write_text(json.dumps(ordered, indent=1) + "\n")
        bad = {name: found for name, found in cells.items() if found.startswith(("wrong", "crash"))}
        print(transform, library, bad or "", flush=True)
    collect()


def file(library: str, transform: str) -> Path:
    return FOLDER / f"{library} {transform}.json"


def known(library: str, transform: str) -> dict[str, str]:
    """What this code has run of a column."""
    there = file(library, transform)
    return json.loads(there.read_text()) if there.exists() else {}


def collect() -> None:
    """One file: what this code has run in the place of what the results have."""
    before: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    columns: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for library in models():
        for transform in TRANSFORMS:
            old, when = (before.get(key, {}).get(library, {}).get(transform, {}) for key in ("columns", "measured"))
            new = known(library, transform)
            cells, commits = old | new, dict.fromkeys(old, earlier("transforms")) | when | dict.fromkeys(new, here())
            columns.setdefault(library, {})[transform] = {name: cells[name] for name in ROWS if name in cells}
            measured.setdefault(library, {})[transform] = {name: commits[name] for name in ROWS if name in cells}
    versions = environment() | {library: importlib.metadata.version(library) for library in EXPORTERS}
    content = {"environment": versions, "columns": columns, "measured": measured}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
