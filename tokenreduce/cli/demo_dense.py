"""`tokenreduce demo --task segmentation|detection`: the shipped dense models on composed scenes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import tokenreduce
from tokenreduce.cli.arguments import progress_bar
from tokenreduce.cli.output import Row, console, print_refused, print_table, write_json
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.pictures import draw_predictions, draw_tradeoff
from tokenreduce.lab.quality.dense import backbone_part, for_backbone, measure_dense
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import Predictor, load_predictor

MODELS = {"segmentation": "scene_segmenter", "detection": "scene_detector"}
HEADLINES = {"segmentation": ("miou", "mIoU"), "detection": ("ap50", "AP50")}
METHODS = ("ward", "tome", "expedit", "evit", "random", "pool")
BUDGETS = (0.85, 0.70, 0.55)
SCENES, BATCH, ROUNDS = 200, 25, 200
PICTURES = 4


def demo_dense(task: str, methods: Sequence[str], limit: int | None, out: Path, json_file: Path | None) -> None:
    """Measure the shipped model on scenes, unpatched and with each method; print and draw the trade-off."""
    data = load_dense("scenes", task, limit=limit or SCENES)
    predictor = load_predictor(MODELS[task], task)
    arms = [Arm(name, flops=share) for name in methods for share in BUDGETS]
    with progress_bar() as progress:
        rows = measure_dense(predictor, arms, data, BATCH, rounds=ROUNDS, progress=progress)
    measured = [row for row in rows if "refused" not in row]
    title = f"{MODELS[task]} on {len(data)} scenes of photographs it was not trained on"
    print_table([{key: value for key, value in row.items() if key != "budget"} for row in measured], title)
    key, name = HEADLINES[task]
    console.print(f"change: of {name}, with the 95 % interval of a paired bootstrap over scenes", highlight=False)
    print_refused([row for row in rows if "refused" in row])
    console.print(summary(measured, key, name), style="bold", highlight=False)
    if json_file is not None:
        write_json(json_file, "demo", rows, task=task, model=MODELS[task], images=len(data), rounds=ROUNDS)
    out.mkdir(parents=True, exist_ok=True)
    draw_tradeoff(measured, out / "tradeoff.png", f"{MODELS[task]}, scenes, without training", key, name)
    draw(predictor, data, out / "predictions.png")
    console.print(f"wrote {out / 'tradeoff.png'} and {out / 'predictions.png'}", highlight=False)


def summary(rows: Sequence[Row], key: str, name: str) -> str:
    """What the table says about the middle budget, in a sentence."""
    middle = [row for row in rows if row["budget"] == f"flops={BUDGETS[1]}"]
    if not middle:
        return f"No method reaches {BUDGETS[1]:.0%} of the compute."
    best = max(middle, key=lambda row: row[key])
    return (
        f"At {BUDGETS[1]:.0%} of the compute {best['method']} is best: {name} {best[key]:.2%}, "
        f"{100 * best['change']:+.2f} points."
    )


@torch.inference_mode()
def draw(predictor: Predictor, data: DenseData, path: Path) -> None:
    """Draw some scenes: the truth, and what the unpatched and the reduced model predict."""
    samples = [data.samples[index] for index in range(min(PICTURES, len(data)))]
    images = [sample["image"] for sample in samples]
    columns: dict[str, list[Any]] = {"truth": [sample["target"] for sample in samples]}
    columns["unpatched"] = predictor(images)
    part = backbone_part(predictor, images[0])
    for share in BUDGETS[1:]:
        reduced = copy.copy(predictor)
        reduced.module = patched_lane(predictor.module, for_backbone(Arm(METHODS[0], flops=share), part))
        found = reduced(images)
        left = tokenreduce.report(reduced.module).tokens_left
        columns[f"{METHODS[0]}, {share:.0%}\n{left} tokens left"] = found
    draw_predictions(images, columns, data.classes, path)
