"""Time of patched models over the limit, the unpatched model sliced to the same token counts -> results/speed.json.

python benchmarks/speed.py --threads 2

Rows with a target are measured in five runs, those of the other methods in one; all runs are kept, and a row reports
the median run by time / limit. `--only` and `--model` replace some rows; every row has its commit. Every run has a
process of its own, because the pages that its buffers get are luck that lasts as long as the process and changes the
ratio of two models. The C library is told to keep freed memory, because whether it returns pages after a layer differs
between two models.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import timm
import torch
from arm_files import stamp
from origins import earlier

import tokenreduce
from tokenreduce.lab.environment import environment
from tokenreduce.lab.speed import Arm, compare
from tokenreduce.ops.native import dispatch

RESULTS = Path(__file__).parent / "results/speed.json"
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}
FIGURES = ("limit_share", "speedup", "median_ms")
DEIT, DINO = "deit_small_patch16_224", "vit_small_patch14_dinov2"


@dataclass(frozen=True)
class Case:
    """One row: `target` is the highest time / limit that is accepted, None where none was set."""

    model: str
    batch: int
    method: str
    budget: dict[str, Any]
    target: float | None = None
    rounds: int = 12


CASES = [
    Case(DEIT, 1, "tome", {"r": 13}, 1.06, 100),
    Case(DEIT, 8, "tome", {"r": 13}, 1.03, 30),
    Case(DEIT, 32, "tome", {"r": 13}, 1.03, 12),
    Case(DINO, 1, "tome", {"flops": 0.6}, 1.02, 40),
    *(Case(DEIT, 8, m, {"flops": 0.6}, 1.06, 16) for m in ("pitome", "evit", "token_transforming", "ward")),
    *(Case(DEIT, 8, m, {"flops": 0.6}, 1.12, 16) for m in ("gtp", "mctf")),
]
CLUSTERING = ("atc", "centerclip", "dpc_knn", "expedit", "kmeans", "kmedoids", "spectral", "zero_tprune")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="only rows of these methods")
    parser.add_argument("--model", choices=(DEIT, DINO), help="only rows of this model")
    return parser.parse_args()


def all_cases() -> list[Case]:
    done = {case.method for case in CASES}
    others = [name for name in tokenreduce.methods("encoder") if name not in done]
    at = {name: 1.25 if name in CLUSTERING else None for name in others}
    return CASES + [Case(DEIT, 8, name, {"flops": 0.6}, at[name], 5) for name in others]


def run(case: Case, threads: int) -> dict[str, Any]:
    """One run, by `compare`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    size = {"img_size": 518} if case.model == DINO else {}
    model = timm.create_model(case.model, **size).eval()
    x = torch.randn(case.batch, *model.default_cfg["input_size"] if not size else (3, 518, 518))
    return compare(model, x, [Arm(case.method, **case.budget)], rounds=case.rounds, min_time=0.02)[1]


def measure(case: Case, times: int, threads: int) -> dict[str, Any]:
    runs = []
    for _ in range(times):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            runs.append(fresh.submit(run, case, threads).result())
    facts = {key: runs[0][key] for key in ("method", "budget", "batch_size", "tokens_left")}
    return {"model": case.model, "target": case.target, **facts, **summary(runs), "rounds": case.rounds}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the median run, by time / limit, or by time where the model cannot be sliced; and of all runs."""
    by = "median_ms" if runs[0]["limit_share"] is None else "limit_share"
    figures = [{key: run[key] for key in FIGURES} for run in runs]
    return sorted(figures, key=itemgetter(by))[(len(runs) - 1) // 2] | {"runs": figures}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two rows are of one case."""
    return all(a[key] == b[key] for key in ("model", "batch_size", "method", "budget"))


def line(row: dict[str, Any]) -> str:
    target = f"target {row['target']}" if row["target"] else ""
    shares = [run["limit_share"] for run in row["runs"]]
    runs = ", ".join(str(share and round(share, 3)) for share in shares)
    where = f"{row['model']} b{row['batch_size']} {row['method']} {row['budget']}"
    return f"{where}: time / limit {runs} {target}, speed-up {row['speedup']:.2f}"


def main() -> None:
    args = parse()
    os.environ.update(KEEP_PAGES)  # for the processes that are started
    dispatch.load()  # compiled before they are
    rows, stamped = [], stamp({"threads": args.threads})
    for case in all_cases():
        if (args.only and case.method not in args.only) or args.model not in (None, case.model):
            continue
        try:
            rows.append(measure(case, 5 if case.target else 1, args.threads) | {"measured": stamped})
        except tokenreduce.InvalidValueError as error:
            print(f"{case.method}: {error}", flush=True)  # such a method cannot spend this budget on this model
            continue
        print(line(rows[-1]), flush=True)
    if args.only or args.model:
        kept = [{"measured": earlier("speed")} | row for row in json.loads(RESULTS.read_text())["rows"]]
        added = [new for new in rows if not any(same(new, old) for old in kept)]
        rows = [next((new for new in rows if same(new, old)), old) for old in kept] + added
    content = {"threads": args.threads, "environment": environment(), "compiled_kernels": not dispatch.load()}
    RESULTS.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
