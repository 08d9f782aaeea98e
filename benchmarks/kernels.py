"""Compiled kernels against their PyTorch references, in interleaved rounds -> results/kernels.json.

python benchmarks/kernels.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import kernel_memory
import torch
from torch import Tensor

import tokenreduce
from tokenreduce.lab.speed.timing import interleave
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.parts.bipartite import alternating_scores, match_bipartite
from tokenreduce.reducers.registry import lookup
from tokenreduce.reducers.tokens import Tokens

CHANNELS = 384
# batch, tokens, key channels, tokens removed
SIZES = [(1, 197, 64, 13), (8, 197, 64, 13), (32, 197, 64, 13)]
SIZES += [(batch, 4096, width, 1024) for batch in (1, 4) for width in (64, 384)]
GROWTH = (1024, 2048, 4096, 8192, 16384)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def with_choice(choice: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with dispatch.using(choice), torch.inference_mode():
            return call()

    return run


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of interleaved rounds."""
    times = interleave(calls, rounds, 0.05, lambda: None)
    return {name: 1e3 * found.median for name, found in times.items()}


def matching(batch: int, n: int, width: int, removed: int, rounds: int) -> dict[str, object]:
    metric, x = torch.randn(batch, n, width), torch.randn(batch, n, CHANNELS)

    def reduce() -> Tensor:
        return match_bipartite(metric, n - removed).merge(x)[0]

    calls = {choice: with_choice(choice, reduce) for choice in ("reference", "cpu")}
    calls["product"] = with_choice("reference", lambda: alternating_scores(metric, 0))
    found = milliseconds(calls, rounds)
    rest, reference_rest = (found[name] - found["product"] for name in ("cpu", "reference"))
    return {
        "kernel": "bipartite_match + merge_apply",
        **{"batch": batch, "tokens": n, "key_channels": width, "removed": removed},
        **{"reference_ms": found["reference"], "compiled_ms": found["cpu"], "product_ms": found["product"]},
        "speedup": found["reference"] / found["cpu"],
        "speedup_without_product": reference_rest / rest if rest > 0 else None,  # None: faster than the product alone
    }


def rounds_of_ward(batch: int, n: int, removed: int, rounds: int) -> dict[str, object]:
    tokens, ward = Tokens(torch.randn(batch, n, CHANNELS)), lookup("ward")()
    calls = {name: with_choice(name, lambda: ward.plan(tokens, n - removed)) for name in ("reference", "cpu")}
    found = milliseconds(calls, rounds)
    return {
        "kernel": "ward_match",
        **{"batch": batch, "tokens": n, "key_channels": CHANNELS, "removed": removed},
        **{"reference_ms": found["reference"], "compiled_ms": found["cpu"]},
        "speedup": found["reference"] / found["cpu"],
    }


def growth(rounds: int) -> list[dict[str, object]]:
    rows = []
    for n in GROWTH:
        metric = torch.randn(1, n, 64)
        call = with_choice("cpu", lambda metric=metric, n=n: match_bipartite(metric, n - n // 4))
        found = milliseconds({"cpu": call}, rounds)
        rows.append({"tokens": n, "compiled_ms": found["cpu"]})
    return rows


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [matching(*size, args.rounds) for size in SIZES]
    rows += [rounds_of_ward(batch, n, n // 4, args.rounds) for batch, n in ((1, 197), (8, 197), (32, 197), (1, 4096))]
    grown = growth(args.rounds)
    for row in [*rows, *grown]:
        print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}))
    content = {
        "threads": args.threads,
        "rounds": args.rounds,
        "torch": torch.__version__,
        "rows": rows,
        "growth": grown,
        "memory": kernel_memory.rows(),
    }
    content |= {"tokenreduce": tokenreduce.__version__, "processor": platform.processor() or platform.machine()}
    (Path(__file__).parent / "results/kernels.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
