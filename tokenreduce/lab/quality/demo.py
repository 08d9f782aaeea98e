"""The demo: a shipped model on shipped images, unpatched and with several methods, as a table and as pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.folders import load_data
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.pictures import draw_tokens, draw_tradeoff, last_of_quarters, maps_after
from tokenreduce.lab.quality.classification import classification_lanes, measure_classification
from tokenreduce.lab.quality.engine import Lane, teller
from tokenreduce.lab.quality.features import DEFINITIONS
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.speed.throughput import throughput
from tokenreduce.patching.verbs import report
from tokenreduce.reducers.registry import methods

METHODS = ("ward", "tome", "evit", "random", "pool")
SCANS = ("ward", "tome", "hsa", "mtr", "random", "pool")  # of those, and of others that state-space models take
BUDGETS = (0.80, 0.60, 0.45)
BATCH, ROUNDS = 100, 9


class Demo(ABC):
    """A demo that is ready to run; `title`, `meaning` and `settings` as in `Evaluation`."""

    hidden: ClassVar[tuple[str, ...]]  # keys that the table leaves out
    title: str
    meaning: str
    settings: dict[str, Any]

    @abstractmethod
    def measure(self, progress: Progress) -> list[Row]:
        """The rows; those of arms that the model cannot reach (`refused`) come last."""

    @abstractmethod
    def summary(self, rows: Sequence[Row]) -> list[str]:
        """What the measured rows say, in a sentence or two."""

    @abstractmethod
    def draw(self, rows: Sequence[Row], out: Path) -> list[Path]:
        """Draw the measured rows and some images into the folder `out`; returns the files."""

    def table(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as people want to see them."""
        return [{key: value for key, value in row.items() if key not in self.hidden} for row in rows]


class ClassificationDemo(Demo):
    """A shipped classifier on Fashion-MNIST, its speed included.

    Args:
        name: fashion_vit or fashion_vim.
        every: every method instead of `METHODS`.
        limit: use so many images instead of all 2,000.
    """

    hidden = ("budget", "top5", "token_error")
    meaning = DEFINITIONS

    def __init__(self, name: str = "fashion_vit", every: bool = False, limit: int | None = None) -> None:
        self.name = name
        self.model: Any = load_model(name, None, True)[0]
        self.images = load_data("fashion-mnist", self.model, limit=limit)
        chosen = methods("encoder") if every else METHODS if name == "fashion_vit" else SCANS
        arms = [Arm(method, flops=share) for method in chosen for share in BUDGETS]
        self.lanes, self.refused = classification_lanes(self.model, arms, len(self.images.class_names))
        threads = torch.get_num_threads()
        self.title = f"{name} on {len(self.images)} Fashion-MNIST test images, {threads} CPU threads"
        self.settings = {"images": len(self.images), "batch_size": min(BATCH, len(self.images)), "rounds": ROUNDS}

    def measure(self, progress: Progress) -> list[Row]:
        batches = self.images.batches(BATCH)
        tell = teller(lambda part, what: progress(part * 0.8, what), len(self.images))
        rows = measure_classification(self.lanes, batches, tell)
        speeds = speeds_of(self.lanes, batches, ROUNDS, lambda part, what: progress(0.8 + part * 0.2, what))
        return [row | speed for row, speed in zip(rows, speeds, strict=True)] + self.refused

    def summary(self, rows: Sequence[Row]) -> list[str]:
        return summarise(rows)

    def draw(self, rows: Sequence[Row], out: Path) -> list[Path]:
        tradeoff, tokens = out / "tradeoff.png", out / "tokens.png"
        draw_tradeoff(rows, tradeoff, f"{self.name}, Fashion-MNIST, without training")
        pictures, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
        pictures = pictures[:: len(pictures) // 6][:6]
        lane = patched_lane(self.model, Arm("tome", flops=BUDGETS[1]))
        with torch.inference_mode():
            lane(fashion_mnist.normalise(pictures))
        done = report(lane)
        maps = maps_after(done, last_of_quarters(len(done.tokens)))
        title = f"tome at {BUDGETS[1]:.0%} of the compute"
        draw_tokens(pictures, maps, self.model.patch_embed.grid_size, tokens, title)
        return [tradeoff, tokens]


def speeds_of(lanes: Sequence[Lane], batches: Iterable[Any], rounds: int, progress: Progress) -> list[Row]:
    """How fast the models of the lanes are on the first batch, a row for each."""
    models = {"unpatched" if lane.arm is None else str(lane.arm): lane.model for lane in lanes}
    return throughput(models, next(iter(batches))[0], rounds, progress)


def summarise(rows: Sequence[Row]) -> list[str]:
    """Which method is best at the middle budget, and whether none is faster than the unpatched model."""
    sentences = []
    arms = [row for row in rows if row["method"] != "unpatched"]
    candidates = [row for row in arms if row["budget"] == f"flops={BUDGETS[1]}"]
    if candidates:
        best = min(candidates, key=lambda row: row["class_error"])
        sentences.append(
            f"At {BUDGETS[1]:.0%} of the compute {best['method']} stays closest to the unpatched model "
            f"(class error {best['class_error']:.4f}): top-1 changes by {100 * best['top1_change']:+.2f} points."
        )
    if all(row["speedup"] < 1 for row in arms):
        sentences.append("Every method is slower than the unpatched model: on this machine reduction does not pay.")
    return sentences
