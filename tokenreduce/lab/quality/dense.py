"""What dense predictions lose and save on fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.budget.counting import count_flops
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.quality.dense_metrics import interval
from tokenreduce.lab.quality.named import make_metric
from tokenreduce.lab.quality.predictors import Predictor
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.verbs import report

Row = dict[str, Any]


class Lane:
    """A predictor, what it costs and how it does so far."""

    def __init__(self, predictor: Predictor, data: DenseData, align: str, adaptive: bool | None = None) -> None:
        # adaptive: None for the unpatched model
        self.predictor, self.adaptive, self.reduced = predictor, bool(adaptive), adaptive is not None
        self.metric = make_metric(data, align)
        self.amounts: list[tuple[int, int]] = []  # MACs and tokens left of each image, if they differ

    def update(self, images: Sequence[Tensor], targets: Sequence[Any]) -> None:
        if not self.adaptive:
            self.metric.update(self.predictor(images), targets)
            return
        for image, target in zip(images, targets, strict=True):  # a batch would report its last forward only
            self.metric.update(self.predictor([image]), [target])
            self.amounts.append((cost(self.predictor, image)["macs"], report(self.predictor.module).tokens_left))

    def cost(self, image: Tensor) -> Row:
        """MACs, tokens left and uncounted operators of one image; means over the images where a method decides."""
        counted = cost(self.predictor, image)
        if self.amounts:
            macs, left = torch.tensor(self.amounts, dtype=torch.float64).mean(0).tolist()
            return {"tokens_left": left, "macs": round(macs), "uncounted": counted["uncounted"]}
        left = report(self.predictor.module).tokens_left if self.reduced else None
        return {"tokens_left": left, **counted}


def measure_dense(
    predictor: Predictor,
    arms: Sequence[Arm],
    data: DenseData,
    batch_size: int = 8,
    *,
    align: str = "none",
    rounds: int = 0,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> list[Row]:
    """Compare every arm with the unpatched `predictor` in one pass over `data`; the first row is the unpatched model.

    Rows have the keys method, budget, options (the arm's arguments besides the budget, if any), images, tokens_left,
    macs, uncounted (operators whose MACs are unknown), flops_share, the metrics of the task (`miou`, `pixel_accuracy`;
    `ap`, `ap50`; `delta1`, `abs_rel`, `rmse`) and `change`, that of the first of `miou`, `ap50` and `delta1`; with
    rounds also `change_interval`. MACs and tokens are those of the first image (means over the images where a method
    without a budget decides); shares and metrics are fractions of 1, except `rmse` in metres. Last come rows with the
    reason (`refused`) for each arm that the model cannot reach.

    A `flops` budget is a share of all that the module does, heads included, which `patch` cannot know: it scales the
    backbone's work only.

    Args:
        predictor: see `Predictor`; its `module` stays unpatched, arms run on copies that share its weights.
        align: what is done to depth predictions first, as in `DepthMetric`.
        rounds: draws of the bootstrap that makes the 95 % interval of the change; 0 makes none.

    Raises: ValueError if there are no images, or the model fits neither the data nor any arm.
    """
    if batch_size < 1 or len(data) == 0:
        raise InvalidValueError(f"batch_size is {batch_size} and there are {len(data)} images; both must be 1 or more")
    if getattr(predictor, "relative", False) and align == "none":
        raise InvalidValueError(
            "this model predicts relative depth, not metres; align its predictions to the truth first: inverse "
            "(relative inverse depth, as of Depth Anything), affine or median"
        )
    if hasattr(predictor, "fit"):
        predictor.fit(data)
    lanes, found, refused = make_lanes(predictor, arms, data, align)
    run(lanes, data, batch_size, progress or (lambda part, what: None))
    first = data.samples[0]["image"]
    rows: list[Row] = [
        {"method": "unpatched", "budget": None},
        *({"method": a.method, "budget": a.budget} for a in found),
    ]
    for row, arm in zip(rows[1:], found, strict=True):
        row |= {"options": arm.options} if arm.options else {}
    for lane, row in zip(lanes, rows, strict=True):
        row |= {"images": len(data), **lane.cost(first)}
        row |= {"flops_share": row["macs"] / rows[0]["macs"], **lane.metric.compute()}
    rows[0]["tokens_left"] = whole(lanes[1:], predictor)
    reference, headline = lanes[0].metric, lanes[0].metric.headline
    for lane, row in zip(lanes, rows, strict=True):
        row["change"] = row[headline] - rows[0][headline]
        if rounds:
            row["change_interval"] = interval(reference, lane.metric, rounds, seed)
    return rows + refused


def make_lanes(
    predictor: Predictor, arms: Sequence[Arm], data: DenseData, align: str
) -> tuple[list[Lane], list[Arm], list[Row]]:
    """The unpatched lane and one for each arm that the model can reach, those arms, and rows of the others."""
    find_backbone(predictor.module)
    part = backbone_part(predictor, data.samples[0]["image"]) if any("flops" in a.arguments for a in arms) else 1
    lanes, found, refused = [Lane(predictor, data, align)], [], []
    for arm in arms:
        try:
            module = patched_lane(predictor.module, for_backbone(arm, part))
        except InvalidValueError as error:
            reason = f"{error} (shares of the backbone, which is {part:.3f} of the model)" if part < 1 else str(error)
            refused.append({"method": arm.method, "budget": arm.budget, "refused": reason})
            continue
        twin = copy.copy(predictor)
        twin.module = module
        lanes.append(Lane(twin, data, align, reduction_of(module).adaptive))
        found.append(arm)
    if arms and not found:
        raise InvalidValueError("; ".join(row["refused"] for row in refused))
    return lanes, found, refused


def backbone_part(predictor: Predictor, image: Tensor) -> float:
    """The backbone's share of the multiply-adds of the module for this image, measured: what dropping a fifth of the
    backbone's saves."""
    probe = copy.copy(predictor)
    probe.module = patched_lane(predictor.module, Arm("random", flops=0.8))
    saved = 1 - cost(probe, image)["macs"] / cost(predictor, image)["macs"]
    return saved / (1 - report(probe.module).flops_share)


def for_backbone(arm: Arm, part: float) -> Arm:
    """The arm with a `flops` budget of the backbone, `part` of the module, that leaves the arm's own share of the
    module."""
    share = arm.arguments.get("flops")
    if share is None:
        return arm
    if share <= 1 - part:
        raise InvalidValueError(
            f"flops={share} is out of reach: {1 - part:.3f} of the multiply-adds are of heads, not of the backbone"
        )
    return Arm(arm.method, **arm.arguments | {"flops": 1 - (1 - share) / part})


@torch.inference_mode()
def run(lanes: Sequence[Lane], data: DenseData, batch_size: int, progress: Callable[[float, str], None]) -> None:
    """Show all images to all lanes."""
    for start in range(0, len(data), batch_size):
        progress(start / len(data), f"{len(data)} images")
        batch = [data.samples[index] for index in range(start, min(start + batch_size, len(data)))]
        for lane in lanes:
            lane.update([sample["image"] for sample in batch], [sample["target"] for sample in batch])


def cost(predictor: Predictor, image: Tensor) -> Row:
    """MACs of what the predictor's module does for one image, and the operators that could not be counted.

    What a predictor does before and after is left out, as papers do.
    """
    calls: list[tuple[Any, Any]] = []
    hook = predictor.module.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        predictor([image])
    finally:
        hook.remove()
    if not calls:
        raise InvalidTypeError(f"{type(predictor).__name__} does not call its module; it must call self.module(...)")
    count = count_flops(lambda: [predictor.module(*args, **kwargs) for args, kwargs in calls], ())
    return {"macs": count.total, "uncounted": count.uncounted}


def whole(lanes: Sequence[Lane], predictor: Predictor) -> int:
    """Image tokens of the first image before any reduction, as a patched lane has just seen it."""
    if lanes:
        return report(lanes[0].predictor.module).input_tokens
    _, backbone, adapter = find_backbone(predictor.module)
    return adapter.geometry(backbone).count
