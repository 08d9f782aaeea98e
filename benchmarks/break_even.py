"""From how many image tokens on reduction pays at batch 1, by backbone width -> results/break_even.json, and a copy
in tokenreduce/lab/speed, which `tokenreduce.advise` reads.

python benchmarks/break_even.py --threads 2 --write
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from tokenreduce.lab.environment import environment
from tokenreduce.lab.speed import Arm, compare
from tokenreduce.lab.speed.advising import FLOPS, METHODS
from tokenreduce.lab.speed.break_even import SHIPPED, curves_of
from tokenreduce.ops.native import dispatch

PATCH, HEAD = 16, 64
# width: layers. Time grows with the layers on both sides, so that 6 of the widest model's 24 give the same ratio.
LAYERS = {192: 12, 384: 12, 768: 12, 1024: 6}
SIDES = (3, 4, 6, 8, 10, 14, 20, 28)  # of the square grid of image tokens: 9 to 784


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two rounds of three counts: whether it runs")
    parser.add_argument("--write", action="store_true", help="also to the results and to the library")
    return parser.parse_args()


def measure(width: int, side: int, rounds: int) -> list[dict[str, Any]]:
    """One row a method for one model of random weights."""
    model = VisionTransformer(
        img_size=side * PATCH, patch_size=PATCH, embed_dim=width, depth=LAYERS[width], num_heads=width // HEAD
    )
    image = torch.randn(1, 3, side * PATCH, side * PATCH)
    arms = [Arm(method, flops=FLOPS) for method in METHODS]
    unpatched, *patched = compare(model, image, arms, rounds=rounds, min_time=0.05)
    refused = [row["refused"] for row in patched if "refused" in row]
    if refused:
        raise SystemExit(f"nothing to compare: {'; '.join(refused)}")
    keys = ("method", "speedup", "speedup_interval", "limit_share", "median_ms")
    given = {"width": width, "layers": LAYERS[width], "tokens": side**2, "unpatched_ms": unpatched["median_ms"]}
    return [given | {key: row[key] for key in keys} for row in patched]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sides, rounds = (SIDES[::3], 2) if args.quick else (SIDES, args.rounds)
    cells, start = list(product(LAYERS, sides)), time.perf_counter()
    rows: list[dict[str, Any]] = []
    for done, (width, side) in enumerate(cells, 1):
        rows += measure(width, side, rounds)
        found = ", ".join(f"{row['method']} {row['speedup']:.2f} x" for row in rows[-len(METHODS) :])
        spent = time.perf_counter() - start
        print(f"{done} of {len(cells)}, {spent:.0f} s: width {width}, {side**2} tokens: {found}", flush=True)
    summary = [{"width": c.width, "method": c.method, "tokens": c.break_even} for c in curves_of(rows)]
    for line in summary:
        print(f"width {line['width']}, {line['method']}: break-even {line['tokens']}")
    if args.write:
        write(rows, summary, args.threads, rounds)


def write(rows: list[dict[str, Any]], summary: list[dict[str, Any]], threads: int, rounds: int) -> None:
    content: dict[str, Any] = {"device": "cpu", "dtype": "float32", "batch_size": 1, "flops": FLOPS}
    content |= {"threads": threads, "rounds": rounds, "environment": environment()}
    content |= {"compiled_kernels": not dispatch.load(), "break_even": summary, "rows": rows}
    text = json.dumps(content, indent=1) + "\n"
    for path in (Path(__file__).parent / "results/break_even.json", SHIPPED):
        path.write_text(text)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
