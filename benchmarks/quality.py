"""Every method at equal compute: errors of a real model on photographs, accuracy and errors of small ones on
Fashion-MNIST. Every run goes on where it stopped.

    python benchmarks/quality.py --model dinov2_small              # about 6 minutes on 2 threads, nothing to download
    python benchmarks/quality.py --model dinov2_small --size 518   # few methods
    python benchmarks/quality.py                                   # the shipped model on the 2,000 shipped test images
    python benchmarks/quality.py --data-dir DIR                    # on all of them
    python benchmarks/quality.py --data-dir DIR --checkpoint runs/second/checkpoint.pt --name quality_second

A run counts what is there as done only where checkpoint, images and the code that decides figures are the same.

Figures of single images go to runs/NAME/FINGERPRINT/, one file an arm; when all arms are there (of the real model:
after each arm), benchmarks/results/NAME.json is written with paired bootstrap intervals: images, or photographs with
all squares cut out of them, are drawn again with replacement, the same ones for every method.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import quality_real
import torch
from arm_files import Found, fingerprint, read, save
from quotients import of_tome
from torch import Tensor, nn

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.bootstrap import interval
from tokenreduce.lab.quality.classification import Batch, Seen, classification_lanes
from tokenreduce.lab.shipped import fashion_vit

BUDGETS = (0.80, 0.60, 0.45)
BATCH, DRAWS = 200, 2000
FIGURES = ("top1", "class_error", "token_error")
RUNS, RESULTS = Path("runs"), Path(__file__).parent / "results"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("fashion_vit", "dinov2_small"), default="fashion_vit")
    parser.add_argument("--name", help="of the results file")
    parser.add_argument("--method", help="only these methods, separated by commas")
    small = parser.add_argument_group("fashion_vit")
    small.add_argument("--data-dir", type=Path, help="all of Fashion-MNIST; default: the shipped test images")
    small.add_argument("--checkpoint", type=Path, help="of examples/train_fashion.py; default: the shipped model")
    small.add_argument("--part", default="0/1", help="I/K: only every K-th arm, to share the work among processes")
    real = parser.add_argument_group("dinov2_small")
    real.add_argument("--size", type=int, default=quality_real.SIZE, help="of the images in pixels, a multiple of 14")
    real.add_argument("--count", type=int, help="squares cut out of photographs; 64, at other sizes 9")
    real.add_argument("--photographs", type=Path, help="a folder of further photographs, beside those of the packages")
    args = parser.parse_args()
    if args.checkpoint and not args.name:
        parser.error("--checkpoint needs --name, of the results file: quality.json is of the shipped model")
    return args


def load(checkpoint: Path | None) -> nn.Module:
    if checkpoint is None:
        return fashion_vit.fashion_vit()
    saved = torch.load(checkpoint)
    sizes = ast.literal_eval(saved["args"]["size"])  # of `--size NAME=N`; arguments are stored as text
    model = fashion_vit.build(saved["patch"], **{name: int(n) for name, n in (one.split("=") for one in sizes)})
    model.load_state_dict(saved["model"])
    return model.eval()


def measure_arm(model: nn.Module, arm: Arm, batches: Sequence[Batch], reference: Sequence[Seen]) -> Found:
    """What one arm costs and its figures of every image; a row with the reason if the model cannot reach the arm."""
    try:
        [_, lane], _ = classification_lanes(model, [arm], len(fashion_mnist.CLASSES))
    except InvalidValueError as error:
        return {"row": {"method": arm.method, "budget": arm.budget, "refused": str(error)}}
    for batch, seen in zip(batches, reference, strict=True):
        lane.show(batch, seen)
    return {"row": lane.row(), **{name: lane.metric.figures[name] for name in FIGURES}}


def draws(images: int) -> Tensor:
    """How often each draw has each image, `(DRAWS, images)`; always the same draws, for the same intervals."""
    times = np.random.default_rng(0).multinomial(images, [1 / images] * images, DRAWS)
    return torch.from_numpy(times).double()


def summarise(arms: Sequence[Found], full: Found) -> list[dict[str, Any]]:
    """Rows with means, bootstrap 95 % intervals, and errors relative to those of tome at the same budget."""
    correct, macs = full["top1"], full["row"]["macs"]
    weights = draws(len(correct)) / len(correct)  # resampled means are one matrix product
    tome = {arm["row"]["budget"]: arm for arm in arms if arm["row"]["method"] == "tome"}
    rows = [{"method": "unpatched", "budget": None, "macs": macs, "flops_share": 1.0, "top1": float(correct.mean())}]
    for arm in arms:
        row = arm["row"] | {"flops_share": arm["row"]["macs"] / macs, "top1": float(arm["top1"].mean())}
        change = arm["top1"] - correct
        row |= {"top1_change": float(change.mean()), "top1_change_interval": interval(weights @ change)}
        for name in ("class_error", "token_error"):
            own, other = arm[name], tome[row["budget"]][name]
            row |= {name: float(own.mean()), f"{name}_interval": interval(weights @ own)}
            row |= of_tome(name, own, other, weights)
        rows.append(row)
    return rows


def main() -> None:
    args = parse()
    if args.model == "dinov2_small":
        quality_real.measure(args, BUDGETS, RUNS, RESULTS)
        return
    name = args.name or "quality"
    model = load(args.checkpoint)
    images, labels = fashion_mnist.load(
        "test", fashion_mnist.find(args.data_dir) if args.data_dir else fashion_mnist.SUBSET
    )
    weights = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest() if args.checkpoint else "shipped"
    folder = RUNS / name / fingerprint({"images": len(images), "weights": weights})
    folder.mkdir(parents=True, exist_ok=True)
    batches = [(fashion_mnist.normalise(i), k) for i, k in zip(images.split(BATCH), labels.split(BATCH), strict=True)]
    names = args.method.split(",") if args.method else tokenreduce.methods("encoder")
    planned = [Arm(name, flops=share) for name in names for share in BUDGETS]
    files = {arm: folder / f"{arm.method}_{arm.arguments['flops']}.npz" for arm in planned}
    index, parts = map(int, args.part.split("/"))
    [full], _ = classification_lanes(model, [], len(fashion_mnist.CLASSES))
    reference = [full.show(batch) for batch in batches]
    for arm in planned[index::parts]:
        if files[arm].exists():
            continue
        found = measure_arm(model, arm, batches, reference)
        save(found, files[arm])
        means = {name: float(found[name].mean()) for name in FIGURES if name in found}
        print(json.dumps(found["row"] | means), flush=True)
    if "tome" in names and all(file.exists() for file in files.values()):
        arms = [read(file) for file in files.values()]
        refused = [arm["row"] for arm in arms if "refused" in arm["row"]]
        whole = {"row": full.row(), "top1": full.metric.figures["top1"]}
        rows = summarise([arm for arm in arms if "refused" not in arm["row"]], whole) + refused
        out = RESULTS / f"{name}.json"
        content = {"images": len(images), "draws": DRAWS, "environment": environment(), "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
