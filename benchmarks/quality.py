"""Every method at equal compute: top-1, class error and token error on all Fashion-MNIST test images.

    python benchmarks/quality.py --data-dir DIR                    # the shipped model; resumes where it stopped
    python benchmarks/quality.py --data-dir DIR --checkpoint runs/second/checkpoint.pt --name quality_second

Figures of single images go to runs/NAME/, one file an arm; when all arms are there, benchmarks/results/NAME.json is
written with paired bootstrap intervals: images are drawn again with replacement, the same ones for every method.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.lanes import patched_lane, restored_lane
from tokenreduce.lab.quality.classification import Seen, cost, distance, observe
from tokenreduce.lab.quality.heads import trained
from tokenreduce.lab.shipped import fashion_vit

BUDGETS = (0.80, 0.60, 0.45)
BATCH, DRAWS = 200, 2000
FIGURES = ("correct", "class_error", "token_error")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="of examples/train_fashion_vit.py; default: the shipped model")
    parser.add_argument("--name", default="quality")
    parser.add_argument("--method", help="only these methods, separated by commas")
    parser.add_argument("--part", default="0/1", help="I/K: only every K-th arm, to share the work among processes")
    return parser.parse_args()


def load(checkpoint: Path | None) -> nn.Module:
    if checkpoint is None:
        return fashion_vit.fashion_vit()
    saved = torch.load(checkpoint)
    shape = {name: int(saved["args"][name]) for name in ("width", "heads", "depth")}
    model = fashion_vit.build(saved["patch"], **shape)
    model.load_state_dict(saved["model"])
    return model.eval()


def batches(images: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        yield part, fashion_mnist.normalise(images[part])


def measure_arm(model: nn.Module, arm: Arm, images: Tensor, labels: Tensor, reference: list[Seen]) -> dict[str, Any]:
    """What one arm costs, and its figures for every image."""
    deployed = patched_lane(model, arm)
    restored = restored_lane(model, arm)
    head, found = trained(restored), {name: [] for name in FIGURES}
    for (part, batch), full in zip(batches(images), reference, strict=True):
        seen = observe(restored, head, batch, 1)
        found["correct"].append(seen.logits.argmax(-1) == labels[part])
        found["class_error"].append(distance(seen.features, full.features))
        found["token_error"].append(distance(seen.tokens, full.tokens).mean(-1))
    row = {"method": arm.method, "budget": arm.budget, **cost(deployed, fashion_mnist.normalise(images[:1]))}
    row["tokens_left"] = tokenreduce.report(deployed).tokens_left
    return {"row": row} | {name: torch.cat(parts).float().numpy() for name, parts in found.items()}


def interval(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def summarise(arms: list[dict[str, Any]], correct: np.ndarray, macs: int) -> list[dict[str, Any]]:
    """Rows with means, bootstrap 95 % intervals, and errors relative to those of tome at the same budget."""
    count = len(correct)
    # How often each image is drawn: resampled means are then one matrix product.
    weights = np.random.default_rng(0).multinomial(count, [1 / count] * count, DRAWS).astype(np.float32) / count
    tome = {arm["row"]["budget"]: arm for arm in arms if arm["row"]["method"] == "tome"}
    rows = [{"method": "unpatched", "budget": None, "macs": macs, "flops_share": 1.0, "top1": float(correct.mean())}]
    for arm in arms:
        row = arm["row"] | {"flops_share": arm["row"]["macs"] / macs, "top1": float(arm["correct"].mean())}
        change = arm["correct"] - correct
        row |= {"top1_change": float(change.mean()), "top1_change_interval": interval(weights @ change)}
        for name in ("class_error", "token_error"):
            drawn, other = weights @ arm[name], tome[row["budget"]][name]
            row |= {name: float(arm[name].mean()), f"{name}_interval": interval(drawn)}
            row[f"{name}_of_tome"] = float(arm[name].mean() / other.mean())
            row[f"{name}_of_tome_interval"] = interval(drawn / (weights @ other))
        rows.append(row)
    return rows


def main() -> None:
    args = parse()
    folder = Path("runs") / args.name
    folder.mkdir(parents=True, exist_ok=True)
    model = load(args.checkpoint)
    images, labels = fashion_mnist.load("test", fashion_mnist.find(args.data_dir))
    names = args.method.split(",") if args.method else tokenreduce.methods()
    planned = [Arm(name, flops=share) for name in names for share in BUDGETS]
    files = {arm: folder / f"{arm.method}_{arm.arguments['flops']}.npz" for arm in planned}
    index, parts = map(int, args.part.split("/"))
    mine = planned[index::parts]
    reference = [observe(model, trained(model), batch, 1) for _, batch in batches(images)]
    for arm in mine:
        if files[arm].exists():
            continue
        try:
            found = measure_arm(model, arm, images, labels, reference)
        except InvalidValueError as error:
            found = {"row": {"method": arm.method, "budget": arm.budget, "refused": str(error)}}
        partial = files[arm].with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **(found | {"row": json.dumps(found["row"])}))
        partial.replace(files[arm])  # at once: a killed run leaves no half file that would count as done
        means = {name: float(found[name].mean()) for name in FIGURES if name in found}
        print(json.dumps(found["row"] | means), flush=True)
    if "tome" in names and all(file.exists() for file in files.values()):
        arms = [dict(np.load(file)) for file in files.values()]
        arms = [arm | {"row": json.loads(str(arm["row"]))} for arm in arms]
        refused = [arm["row"] for arm in arms if "refused" in arm["row"]]
        correct = torch.cat([full.logits.argmax(-1) for full in reference]) == labels
        macs = cost(model, fashion_mnist.normalise(images[:1]))["macs"]
        rows = summarise([a for a in arms if "refused" not in a["row"]], correct.float().numpy(), macs) + refused
        out = Path(__file__).parent / "results" / f"{args.name}.json"
        out.write_text(json.dumps({"images": len(images), "draws": DRAWS, "rows": rows}, indent=1) + "\n")
        print(f"wrote {out}")


if __name__ == "__main__":
    main()
