"""Compiled kernels against their PyTorch references, in interleaved rounds -> results/kernels.json.

python benchmarks/kernels.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import kernel_memory
import torch
from torch import Tensor

from tokenreduce.lab.environment import environment
from tokenreduce.lab.speed.timing import Times, interleave
from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.models.vim import vim_tiny
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.selective_scan import scan_now
from tokenreduce.reducers.parts.bipartite import alternating_scores, match_bipartite
from tokenreduce.reducers.registry import lookup
from tokenreduce.reducers.tokens import Tokens

CHANNELS = 384
# batch, tokens, key channels, tokens removed
SIZES = [(1, 197, 64, 13), (8, 197, 64, 13), (32, 197, 64, 13)]
SIZES += [(batch, 4096, width, 1024) for batch in (1, 4) for width in (64, 384)]
WARD = ((1, 197), (8, 197), (32, 197), (1, 4096))  # batch, tokens
SCAN = {"batch": (1, 8), "threads": (1, 2)}
SCANNED, STATES, SIDE = 197, 16, 224  # tokens, numbers in each channel's state, pixels
GROWTH = (1024, 2048, 4096, 8192, 16384)
Calls = dict[str, Callable[[], object]]
Row = dict[str, Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/kernels.json")
    return parser.parse_args()


def by_choice(call: Callable[[], object]) -> Calls:
    """The call by the reference and by compiled kernels."""
    return {choice: with_choice(choice, call) for choice in ("reference", "cpu")}


def with_choice(choice: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with dispatch.using(choice), torch.inference_mode():
            return call()

    return run


def timed(calls: Calls, rounds: int) -> dict[str, Times]:
    return interleave(calls, rounds, 0.05, lambda: None)


def row_of(found: dict[str, Times], **what: Any) -> Row:
    """Medians, and the median of the quotients of rounds."""
    gains = found["reference"].ratios(found["cpu"])
    return what | {
        "reference_ms": 1e3 * found["reference"].median,
        "compiled_ms": 1e3 * found["cpu"].median,
        "speedup": statistics.median(gains),
        "speedup_rounds": gains,
    }


def matching(batch: int, n: int, width: int, removed: int, rounds: int) -> Row:
    metric, x = torch.randn(batch, n, width), torch.randn(batch, n, CHANNELS)

    def reduce() -> Tensor:
        return match_bipartite(metric, n - removed).merge(x)[0]

    calls = by_choice(reduce) | {"product": with_choice("reference", lambda: alternating_scores(metric, 0))}
    found = timed(calls, rounds)
    what = {"kernel": "bipartite_match + merge_apply", "batch": batch, "tokens": n, "key_channels": width}
    return row_of(found, **what, removed=removed) | {"product_ms": 1e3 * found["product"].median}


def ward(batch: int, n: int, rounds: int) -> list[Row]:
    """A quarter of the tokens is removed: by exact clusters, and in rounds."""
    tokens, rows = Tokens(torch.randn(batch, n, CHANNELS)), []
    for kernel, options in (("ward_cluster", {}), ("ward_match", {"rounds": 3})):
        method = lookup("ward")(**options)
        found = timed(by_choice(lambda method=method: method.plan(tokens, n - n // 4)), rounds)
        rows.append(row_of(found, kernel=kernel, batch=batch, tokens=n, key_channels=CHANNELS, removed=n // 4))
    return rows


def restoring(batch: int, n: int, rounds: int) -> Row:
    """A tenth of the tokens, merged by pairs, comes back by kriging."""
    x, removed = torch.randn(batch, n, CHANNELS), n // 10
    token_map = match_bipartite(x, n - removed)
    merged = token_map.apply(x)
    arguments = ("kriging", merged + merged.sin(), [token_map], [Around(x, merged)], 0, 0)
    found = timed(by_choice(lambda: restore_tokens(*arguments)), rounds)
    return row_of(found, kernel="krige_apply", batch=batch, tokens=n, key_channels=CHANNELS, removed=removed)


def scan(batch: int, threads: int, rounds: int) -> list[Row]:
    """One walk of a Vim-Ti of 224 pixels, and all of the model: each with kernels and with the loop."""
    torch.set_num_threads(threads)
    x, z = torch.randn(batch, SCANNED, 2 * CHANNELS).chunk(2, -1)
    write, read = torch.randn(batch, SCANNED, 2 * STATES).chunk(2, -1)
    rate, bias = -torch.rand(CHANNELS, STATES) - 0.1, torch.randn(CHANNELS)
    walk = (x, torch.randn(batch, SCANNED, CHANNELS), rate, write, read, bias, z, None, bias, None, None, True, False)
    model, images = vim_tiny().eval(), torch.randn(batch, 3, SIDE, SIDE)
    shape = {"batch": batch, "tokens": SCANNED, "threads": threads}
    return [
        row_of(timed(by_choice(lambda: scan_now(*walk)), rounds), kernel="selective_scan", **shape),
        row_of(timed(by_choice(lambda: model(images)), max(1, rounds // 3)), kernel="Vim-Ti, whole", **shape),
    ]


def growth(rounds: int) -> list[Row]:
    rows = []
    for n in GROWTH:
        metric = torch.randn(1, n, 64)
        call = with_choice("cpu", lambda metric=metric, n=n: match_bipartite(metric, n - n // 4))
        rows.append({"tokens": n, "compiled_ms": 1e3 * timed({"cpu": call}, rounds)["cpu"].median})
    return rows


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [matching(*size, args.rounds) for size in SIZES]
    rows += [row for batch, n in WARD for row in ward(batch, n, args.rounds)]
    rows += [restoring(batch, n, args.rounds) for batch, n in WARD]
    grown = growth(args.rounds)
    content = {"threads": args.threads, "rounds": args.rounds, "environment": environment(), "rows": rows}
    content |= {"growth": grown, "memory": kernel_memory.rows()}
    content["scans"] = [row for shape in product(*SCAN.values()) for row in scan(*shape, args.rounds)]
    for row in [*rows, *content["scans"], *grown]:
        shown = {key: value for key, value in row.items() if key != "speedup_rounds"}
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in shown.items()}))
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
