"""What dense predictions lose and save on fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tokenreduce.budget.counting import count_flops
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.samples import DenseData, Sample
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.quality.dense_metrics import DenseMetric
from tokenreduce.lab.quality.engine import Lane, measure_lanes, teller
from tokenreduce.lab.quality.named import make_metric
from tokenreduce.lab.quality.predictors import Predictor
from tokenreduce.lab.quality.sharing import dense_shards
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shards import Ledger
from tokenreduce.lab.team import ALONE, Team
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.verbs import report


class DenseLane(Lane):
    """A predictor in a comparison."""

    metric: DenseMetric

    def __init__(self, arm: Arm | None, predictor: Predictor, metric: DenseMetric) -> None:
        super().__init__(arm, predictor.module, metric)
        self.predictor = predictor

    def take(self, batch: Sequence[Sample], reference: Any) -> None:
        # A batch would report the last forward only, and an adaptive method decides for each image.
        for part in [[sample] for sample in batch] if self.adaptive else [batch]:
            images = [sample["image"] for sample in part]
            self.metric.update(self.predictor(images), [sample["target"] for sample in part])
            if self.adaptive:
                self.note(1, self.count(part)["macs"], report(self.model).tokens_left)

    def count(self, batch: Sequence[Sample]) -> Row:
        return cost(self.predictor, batch[0]["image"])


def measure_dense(
    predictor: Predictor,
    arms: Sequence[Arm],
    data: DenseData,
    batch_size: int = 8,
    *,
    align: str = "none",
    rounds: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    team: Team = ALONE,
    ledger: Ledger | None = None,
) -> list[Row]:
    """Compare every arm with the unpatched `predictor` in one pass over `data`; the first row is the unpatched model.

    Rows have the keys method, budget, options (the arm's arguments besides the budget), images, tokens_left,
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
        team: the processes that share the work; all of them get the rows.
        ledger: where finished batches are kept.

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
    lanes, refused = dense_lanes(predictor, arms, data, align)
    shards = dense_shards(data, batch_size, team, ledger)
    rows = measure_lanes(lanes, shards, rounds=rounds, seed=seed, tell=teller(progress, len(data)))
    for row in rows:
        row["images"] = len(data) - len(data.left_out)
    return rows + refused


def dense_lanes(
    predictor: Predictor, arms: Sequence[Arm], data: DenseData, align: str = "none"
) -> tuple[list[DenseLane], list[Row]]:
    """The unpatched lane and one for each arm that the model can reach, and rows of the refused arms."""
    find_backbone(predictor.module)
    first = data.first()["image"]
    part = backbone_part(predictor, first) if any("flops" in a.arguments for a in arms) else 1

    def lane(arm: Arm) -> DenseLane:
        try:
            module = patched_lane(predictor.module, for_backbone(arm, part))
        except InvalidValueError as error:
            what = f"{error} (shares of the backbone, which is {part:.3f} of the model)" if part < 1 else str(error)
            raise InvalidValueError(what) from None
        return DenseLane(arm, with_module(predictor, module), make_metric(data, align))

    made, refused = try_arms(arms, lane)
    return [DenseLane(None, predictor, make_metric(data, align)), *(one for _, one in made)], refused


def with_module(predictor: Predictor, module: nn.Module) -> Predictor:
    """The predictor around another module; `predictor` keeps its own."""
    other = copy.copy(predictor)
    other.module = module
    return other


def reduced_predictor(predictor: Predictor, arm: Arm, image: Tensor) -> Predictor:
    """The predictor around a copy of its module patched as the arm says, a `flops` budget meaning the whole module."""
    part = backbone_part(predictor, image)
    return with_module(predictor, patched_lane(predictor.module, for_backbone(arm, part)))


def backbone_part(predictor: Predictor, image: Tensor) -> float:
    """The backbone's share of the module's multiply-adds for this image, measured on a copy whose backbone does 80 % of
    its work: what the module saves, over what the backbone saves."""
    probe = with_module(predictor, patched_lane(predictor.module, Arm("random", flops=0.8)))
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
