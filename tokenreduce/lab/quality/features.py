"""How far the features of patched models are from those of the unpatched model, on images with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.budget.counting import count_flops
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, restored_lane, try_arms
from tokenreduce.lab.quality.distance import distance
from tokenreduce.lab.quality.engine import Lane, measure_lanes
from tokenreduce.lab.quality.heads import whole_forward
from tokenreduce.lab.quality.metric import Metric, as_lists, as_tensors
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shards import Shards
from tokenreduce.lab.token_places import image_tokens
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.verbs import report

DEFINITIONS = (
    "class error and token error: mean of 1 - cosine between the patched and the unpatched model, of the features "
    "before the head and of the final image tokens (all restored)"
)
GEOMETRIC = "geo. mean: geometric mean of the images' errors, in which no single image weighs much"
SALIENCY = "saliency error: mean difference of the saliency maps, which lie in 0 to 1"
LEAST = 1e-9  # an image without any error would make a geometric mean 0
Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) and labels (B,)
# From final image tokens (B, N, C) to what a dense head makes of them, (B, ...) in [0, 1].
Read = Callable[[Tensor], Tensor]


class FeatureLane(Lane):
    """One model, as two patched copies.

    `model` is patched as users patch: it costs what the row says. `restored` keeps as many tokens and then gets all
    back, so that its final tokens can be compared one by one with the unpatched model's; it answers the same.

    Args:
        unpatched: the lane of the unpatched model; None in that lane itself.
    """

    def __init__(
        self, arm: Arm | None, model: Any, restored: Any, unpatched: FeatureLane | None, metric: Metric
    ) -> None:
        super().__init__(arm, model, metric)
        self.restored, self.unpatched = restored, unpatched or self
        _, backbone, adapter = find_backbone(restored)
        self.geometry = adapter.geometry(backbone)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the head reads, the features `(B, C)` before it and the image tokens `(B, N, C)`."""
        out, features, tokens = whole_forward(self.restored, images)
        if self.adaptive:  # all images of a batch keep as many tokens
            done = report(self.restored)
            self.note(len(images), done.flops_share * self.unpatched.cost["macs"], done.tokens_left)
        return out, features, image_tokens(tokens, self.geometry)

    def count(self, batch: Batch) -> Row:
        count = count_flops(self.model, self.placed(batch)[0][:1])
        return {"macs": count.total, "uncounted": count.uncounted}

    def placed(self, batch: Batch) -> Batch:
        """The batch on the model's device."""
        device = next(self.model.parameters()).device
        return batch[0].to(device), batch[1].to(device)


@dataclass(frozen=True)
class Features:
    """What a model makes of a batch: `features (B, C)`, image `tokens (B, N, C)` and, with a dense head, what that
    says of the tokens, `(B, ...)`."""

    features: Tensor
    tokens: Tensor
    answers: Tensor | None = None


class FeatureMetric(Metric):
    """`class_error`, `token_error` and, where there is a dense head, `saliency_error`, each with its geometric mean;
    `figures` holds those of each image."""

    headline = "token_error"

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []

    @property
    def images(self) -> int:
        return sum(len(part[self.headline]) for part in self.parts)

    @property
    def figures(self) -> dict[str, Tensor]:
        """Each error of each image, `(images,)` float64."""
        return {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}

    def update(self, seen: Features, reference: Features) -> None:
        """Take in a batch: what the model and what the unpatched model make of it."""
        figures = {"class_error": distance(seen.features, reference.features)}
        figures["token_error"] = distance(seen.tokens, reference.tokens).mean(-1)
        if seen.answers is not None and reference.answers is not None:
            figures["saliency_error"] = (seen.answers - reference.answers).abs().flatten(1).mean(1)
        self.parts.append({name: values.double().cpu() for name, values in figures.items()})

    def compute(self) -> dict[str, float]:
        found = {}
        for name, values in self.figures.items():
            found[name] = float(values.mean())
            found[f"{name}_geometric"] = float(values.clamp_min(LEAST).log().mean().exp()) if values.any() else 0.0
        return found

    def give(self) -> Any:
        given, self.parts = [as_lists(part) for part in self.parts], []
        return given

    def take_in(self, given: Any) -> None:
        self.parts += map(as_tensors, given)

    def resampled(self, times: Tensor) -> Tensor:
        return times @ self.figures[self.headline] / times.sum(1)


class UnlabelledLane(FeatureLane):
    """A lane that needs no labels.

    Args:
        read: a dense head on the image tokens, if the model has one.
    """

    metric: FeatureMetric

    def __init__(
        self, arm: Arm | None, model: Any, restored: Any, unpatched: FeatureLane | None, read: Read | None
    ) -> None:
        super().__init__(arm, model, restored, unpatched, FeatureMetric())
        self.read = read

    def take(self, batch: Batch, reference: Features | None) -> Features:
        _, features, tokens = self.look(self.placed(batch)[0])
        seen = Features(features, tokens, None if self.read is None else self.read(tokens))
        self.metric.update(seen, reference or seen)
        return seen


def unlabelled_lanes(
    model: nn.Module, arms: Sequence[Arm], read: Read | None = None
) -> tuple[list[UnlabelledLane], list[Row]]:
    """The lane of the unpatched model and one for each arm that it can reach, and rows of the refused arms.

    Raises: ValueError if there are arms and none can be reached.
    """
    full = UnlabelledLane(None, model, model, None, read)
    made, refused = try_arms(
        arms, lambda arm: UnlabelledLane(arm, patched_lane(model, arm), restored_lane(model, arm), full, read)
    )
    return [full, *(one for _, one in made)], refused


def measure_features(
    lanes: Sequence[UnlabelledLane],
    batches: Iterable[Batch] | Shards,
    tell: Callable[[int], object] = lambda done: None,
) -> list[Row]:
    """The rows of `lanes`, of which the first is unpatched; the unpatched model has no errors."""
    rows = measure_lanes(lanes, batches, tell=tell)
    return [{key: value for key, value in row.items() if key != "change"} for row in rows]
