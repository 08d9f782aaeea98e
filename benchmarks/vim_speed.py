"""Vim-Ti of 224 pixels at flops=0.6: unpatched, patched and the limit in turns -> results/vim_speed.json.

python benchmarks/vim_speed.py

Every run has a process of its own, as in speed.py, and all runs are kept: a row shows their median.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
from arm_files import here
from speed import KEEP_PAGES

from tokenreduce.lab.environment import environment
from tokenreduce.lab.speed import Arm, compare
from tokenreduce.models.vim import vim_tiny
from tokenreduce.ops.native import dispatch

METHODS, BATCHES, FLOPS, SIDE = ("ward", "tome"), (1, 8), 0.6, 224
FIGURES = ("speedup", "limit_share", "median_ms", "unpatched_ms")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="processes, one after the other")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/vim_speed.json")
    return parser.parse_args()


def run(method: str, batch: int, side: int, threads: int, rounds: int) -> dict[str, Any]:
    """One run, by `compare`: ratios are medians over rounds in which each model has a turn."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side)
    model = vim_tiny(img_size=side).eval()
    unpatched, row = compare(model, images, [Arm(method, flops=FLOPS)], rounds=rounds, min_time=0.02)
    return row | {"unpatched_ms": unpatched["median_ms"]}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the runs, and what each gave."""
    figures = [{key: one[key] for key in FIGURES} for one in runs]
    return {key: statistics.median(one[key] for one in figures) for key in FIGURES} | {"runs": figures}


def main() -> None:
    args = parse()
    os.environ.update(KEEP_PAGES)  # for the processes that are started
    dispatch.load()  # compiled before they are
    rows = []
    for method, batch in product(METHODS, BATCHES):
        runs = []
        for _ in range(args.runs):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                runs.append(fresh.submit(run, method, batch, args.side, args.threads, args.rounds).result())
        facts = {key: runs[0][key] for key in ("method", "batch_size", "tokens_left", "flops_share")}
        rows.append(facts | summary(runs) | {"measured": f"{here()}/"})
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "runs"}), flush=True)
    content = {"model": f"Vim-Ti, {args.side} pixels", "flops": FLOPS, "threads": args.threads, "rounds": args.rounds}
    args.out.write_text(json.dumps({**content, "environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
