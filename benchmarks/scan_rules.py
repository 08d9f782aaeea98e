"""What every method loses on the shipped state-space model, by what its convolution and scans do where tokens are gone
-> results/scans.json, written after every row; rows that are there are not measured again, unless images or code are
others.

python benchmarks/scan_rules.py                     # 500 test images, 60 % of the multiply-adds
python benchmarks/scan_rules.py --part 0/2 & python benchmarks/scan_rules.py --part 1/2

It took 6 minutes in two processes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from arm_files import same_code, stamp

import tokenreduce
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.environment import environment
from tokenreduce.lab.shipped.fashion_vim import fashion_vim

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "scans.json"
FLOPS, BATCH = 0.6, 100
# Every way of the convolution with the default of the scans, then every way of the scans.
RULES = [(conv, "size") for conv in ("stand_in", "compact", "zeros")]
RULES += [("stand_in", gap) for gap in ("hold", "self", "frozen")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="0/1", metavar="I/N", help="of the methods, for several processes")
    parser.add_argument("--images", type=int, default=500)
    return parser.parse_args()


def measure(model: Any, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Features of the class token `(B, C)`, and the share of right answers."""
    with torch.inference_mode():
        parts = [model.forward_head(model.forward_features(x), pre_logits=True) for x in images.split(BATCH)]
    features = torch.cat(parts)
    return features, float((model.head(features).argmax(1) == labels).float().mean())


def main() -> None:
    args = parse()
    part, parts = map(int, args.part.split("/"))
    file = RESULTS if parts == 1 else RESULTS.with_suffix(f".{part}.json")
    torch.set_num_threads(1)
    model = fashion_vim()
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    index = torch.arange(len(images))[:: max(1, len(images) // args.images)][: args.images]
    images, labels = fashion_mnist.normalise(images[index]), labels[index]
    whole, top1 = measure(model, images, labels)
    measured = stamp({"images": len(images), "flops": FLOPS})
    rows = read(file, measured)
    done = {(row["method"], row["conv"], row["gap"]) for row in rows}
    wanted = [(m, *rule) for rule in RULES for m in tokenreduce.compatible(model)]
    for method, conv, gap in wanted[part::parts]:
        if (method, conv, gap) in done:
            continue
        row: dict[str, Any] = {"method": method, "conv": conv, "gap": gap, "measured": measured}
        try:
            tokenreduce.patch(model, method, flops=FLOPS, scan_conv=conv, scan_gap=gap)
            found, right = measure(model, images, labels)
            error = float((1 - torch.cosine_similarity(found, whole)).mean())
            row |= {"top1": right, "top1_change": right - top1, "class_error": error}
            row["tokens_left"] = tokenreduce.report(model).tokens_left
        except ValueError as error:
            row["refused"] = str(error)
        tokenreduce.unpatch(model)
        rows.append(row)
        write(file, rows, len(images), top1)
        print(json.dumps(row), flush=True)
    if parts > 1:
        join(measured, len(images), top1)


def read(file: Path, measured: str) -> list[dict[str, Any]]:
    """The rows of this code on these images; others would be mixed with them."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return [row for row in rows if same_code(row.get("measured", ""), measured)]


def write(file: Path, rows: list[dict[str, Any]], count: int, top1: float) -> None:
    data = {"model": "fashion_vim", "flops": FLOPS, "images": count, "top1": top1, "environment": environment()}
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps({**data, "rows": rows}, indent=1) + "\n")
    partial.replace(file)


def join(measured: str, count: int, top1: float) -> None:
    """One file of the rows of all processes, as far as they are."""
    files = sorted(RESULTS.parent.glob("scans.[0-9]*.json"))
    rows = sorted((row for file in files for row in read(file, measured)), key=lambda row: (row["method"], row["conv"]))
    write(RESULTS, rows, count, top1)


if __name__ == "__main__":
    main()
