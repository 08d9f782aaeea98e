"""The demo of dense tasks: the shipped segmenter and detector on composed scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.pictures import draw_predictions, draw_tradeoff
from tokenreduce.lab.quality.demo import Demo
from tokenreduce.lab.quality.dense import measure_dense, reduced_predictor
from tokenreduce.lab.quality.evaluation import DENSE_MODELS
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.patching.compatibility import compatible
from tokenreduce.patching.verbs import report

HEADLINES = {"segmentation": ("miou", "mIoU"), "detection": ("ap50", "AP50")}
METHODS = ("ward", "tome", "expedit", "evit", "random", "pool")
BUDGETS = (0.85, 0.70, 0.55)
SCENES, BATCH, ROUNDS = 200, 25, 200
PICTURES = 4


class DenseDemo(Demo):
    """The shipped model of a task on scenes.

    Args:
        task: "segmentation" or "detection".
        every: every method that fits the model instead of `METHODS`.
        limit: use so many scenes instead of 200.
    """

    hidden = ("budget",)

    def __init__(self, task: str, every: bool = False, limit: int | None = None) -> None:
        model = DENSE_MODELS[task]
        self.task, (self.key, self.name) = task, HEADLINES[task]
        self.data = load_dense("scenes", task, limit=limit or SCENES)
        self.predictor = load_predictor(model, task)
        names = compatible(self.predictor.module) if every else METHODS
        self.arms = [Arm(name, flops=share) for name in names for share in BUDGETS]
        self.title = f"{model} on {len(self.data)} scenes of photographs it was not trained on"
        self.meaning = f"change: of {self.name}, with the 95 % interval of a paired bootstrap over scenes"
        self.settings = {"task": task, "model": model, "images": len(self.data), "rounds": ROUNDS}

    def measure(self, progress: Progress) -> list[Row]:
        return measure_dense(self.predictor, self.arms, self.data, BATCH, rounds=ROUNDS, progress=progress)

    def summary(self, rows: Sequence[Row]) -> list[str]:
        middle = [row for row in rows if row["budget"] == f"flops={BUDGETS[1]}"]
        if not middle:
            return [f"No method reaches {BUDGETS[1]:.0%} of the compute."]
        best = max(middle, key=lambda row: row[self.key])
        return [
            f"At {BUDGETS[1]:.0%} of the compute {best['method']} is best: {self.name} {best[self.key]:.2%}, "
            f"{100 * best['change']:+.2f} points."
        ]

    def draw(self, rows: Sequence[Row], out: Path) -> list[Path]:
        tradeoff, predictions = out / "tradeoff.png", out / "predictions.png"
        draw_tradeoff(rows, tradeoff, f"{DENSE_MODELS[self.task]}, scenes, without training", self.key, self.name)
        self._draw_predictions(predictions)
        return [tradeoff, predictions]

    @torch.inference_mode()
    def _draw_predictions(self, path: Path) -> None:
        """Draw some scenes: the truth, and what the unpatched and the reduced model predict."""
        samples = [self.data.samples[index] for index in range(min(PICTURES, len(self.data)))]
        images = [sample["image"] for sample in samples]
        columns: dict[str, list[Any]] = {"truth": [sample["target"] for sample in samples]}
        columns["unpatched"] = self.predictor(images)
        for share in BUDGETS[1:]:
            reduced = reduced_predictor(self.predictor, Arm(METHODS[0], flops=share), images[0])
            found = reduced(images)
            left = report(reduced.module).tokens_left
            columns[f"{METHODS[0]}, {share:.0%}\n{left} tokens left"] = found
        draw_predictions(images, columns, self.data.classes, path)
