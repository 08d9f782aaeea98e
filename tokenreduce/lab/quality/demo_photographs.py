"""The demo of a real model: DINOv2 on photographs, what its features and a dense head lose, and what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import photographs
from tokenreduce.lab.data.folders import load_data
from tokenreduce.lab.lanes import patched_lane, restored_lane
from tokenreduce.lab.pictures import draw_errors, draw_tokens, last_of_quarters, maps_after
from tokenreduce.lab.quality.demo import METHODS, Demo, speeds_of
from tokenreduce.lab.quality.engine import teller
from tokenreduce.lab.quality.features import DEFINITIONS, SALIENCY, measure_features, unlabelled_lanes
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shipped import dinov2_small
from tokenreduce.patching.verbs import report
from tokenreduce.reducers.registry import methods

BUDGETS = (0.80, 0.60, 0.45)
SQUARES, BATCH, ROUNDS = 45, 9, 5
ERRORS = {"class_error": "class error", "token_error": "token error", "saliency_error": "saliency error"}
PICTURED = ("astronaut", "coffee", "china")


class PhotographDemo(Demo):
    """DINOv2 ViT-S/14 and a saliency head on squares of photographs, their speed included.

    Args:
        every: every method that fits the model instead of `METHODS`.
        limit: use so many squares instead of 45.
    """

    hidden = ("budget", *(f"{key}_geometric" for key in ERRORS))
    meaning = f"{DEFINITIONS}; {SALIENCY}"

    def __init__(self, every: bool = False, limit: int | None = None) -> None:
        self.model: Any = dinov2_small.dinov2_small()
        self.head = dinov2_small.saliency_head()
        self.images = load_data(photographs.NAME, self.model, limit=limit or SQUARES)
        arms = [Arm(name, flops=share) for name in (methods("encoder") if every else METHODS) for share in BUDGETS]
        self.lanes, self.refused = unlabelled_lanes(self.model, arms, self.head)
        names, count, threads = self.images.images.names, len(self.images), torch.get_num_threads()
        self.title = (
            f"{dinov2_small.NAME} on {count} squares of {len(set(names))} photographs, 224 x 224, {threads} CPU threads"
        )
        self.settings = {"model": dinov2_small.NAME, "data": photographs.NAME, "images": count, "sources": names}
        self.settings |= {"batch_size": min(BATCH, count), "rounds": ROUNDS}

    def measure(self, progress: Progress) -> list[Row]:
        batches = self.images.batches(BATCH)
        tell = teller(lambda part, what: progress(part * 0.6, what), len(self.images))
        rows = measure_features(self.lanes, batches, tell)
        speeds = speeds_of(self.lanes, batches, ROUNDS, lambda part, what: progress(0.6 + part * 0.4, what))
        return [row | speed for row, speed in zip(rows, speeds, strict=True)] + self.refused

    def summary(self, rows: Sequence[Row]) -> list[str]:
        middle = {row["method"]: row for row in rows if row["budget"] == f"flops={BUDGETS[1]}"}
        if not middle:
            return [f"No method reaches {BUDGETS[1]:.0%} of the compute."]
        best = min(middle.values(), key=lambda row: row["token_error"])
        tome = middle.get("tome", best)
        than = "" if tome is best else f", {best['token_error'] / tome['token_error']:.2f} of tome's"
        return [
            f"At {BUDGETS[1]:.0%} of the compute {best['method']} stays closest to the unpatched model: token error "
            f"{best['token_error']:.4f}{than}, {best['speedup']:.2f} times as fast."
        ]

    def draw(self, rows: Sequence[Row], out: Path) -> list[Path]:
        errors, tokens = out / "errors.png", out / "tokens.png"
        draw_errors(rows, errors, ERRORS, f"{dinov2_small.NAME}, {photographs.NAME}, without training")
        self._draw_tokens(tokens)
        return [errors, tokens]

    @torch.inference_mode()
    def _draw_tokens(self, path: Path) -> None:
        """Draw some photographs, their tokens layer by layer, and what the saliency head says with and without."""
        squares: photographs.Squares = self.images.images
        chosen = [squares.names.index(name) for name in PICTURED if name in squares.names] or [0]
        inputs = torch.stack([squares[index][0] for index in chosen])
        arm = Arm(METHODS[0], flops=BUDGETS[1])
        lane = patched_lane(self.model, arm)
        lane(inputs)
        done = report(lane)
        maps = maps_after(done, last_of_quarters(len(done.tokens))[1:])
        models: dict[str, Any] = {"unpatched": self.model, arm.method: restored_lane(self.model, arm)}
        says = {
            f"saliency,\n{name}": self.head(model.forward_features(inputs)[:, 1:])[:, 0]
            for name, model in models.items()
        }
        title = f"{dinov2_small.NAME}, {arm.method} at {BUDGETS[1]:.0%} of the compute"
        draw_tokens(squares.squares[chosen], maps, self.model.patch_embed.grid_size, path, title, says)
