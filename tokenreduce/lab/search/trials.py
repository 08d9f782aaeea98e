"""`Trials`: the errors of candidates on images, each measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.budget.schedule import Schedule
from tokenreduce.budget.spreading import Counts
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.journal import Journal, digest, digest_of_method, digest_of_model
from tokenreduce.lab.lanes import patched_lane, restored_lane, unpatched_lane
from tokenreduce.lab.quality.distance import distance
from tokenreduce.lab.search.curves import Curve, resolve
from tokenreduce.lab.search.features import KINDS, features
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.verbs import report
from tokenreduce.reducers.registry import create

LEAST_STEP = 1e-6  # of a share of the multiply-adds


@dataclass(frozen=True)
class Variant:
    """A method with its options."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.method}({given})" if given else self.method


def variants_of(methods: Sequence[Any] | None, default: Sequence[Any]) -> list[Variant]:
    """The methods, names or pairs of a name and options; those of `default` where there are none.

    Raises: TypeError or ValueError if they are no such list.
    """
    if isinstance(methods, str):
        raise InvalidTypeError(f"methods is {methods!r}; give a list, such as [{methods!r}]")
    if methods is not None and not methods:
        raise InvalidValueError("methods is empty; give names, or leave it out")
    return [Variant(one) if isinstance(one, str) else Variant(one[0], dict(one[1])) for one in methods or default]


@dataclass(frozen=True)
class Candidate:
    """A method with its options and a schedule; `curve` made the schedule, None is the method's own shape."""

    variant: Variant
    schedule: Schedule
    share: float  # of the unpatched MACs
    counts: Counts
    curve: Curve | None = None

    def to_json(self) -> dict[str, Any]:
        shape = {"family": "own"} if self.curve is None else self.curve.to_json()
        return {
            "method": self.variant.method,
            "options": self.variant.options,
            "shape": shape,
            "counts": list(self.counts),
            "flops_share": round(self.share, 5),
        }


class Trials:
    """Measures candidates on the same images against the unpatched model, whose outputs are made once.

    Args:
        default: what candidates are compared with.
        images: `(n, C, H, W)`.
        batches: the numbers of the images that run together.
        tell: called for every batch of a candidate with what runs and how many images it has.

    Raises: ValueError if the model cannot carry the default.
    """

    def __init__(
        self,
        model: nn.Module,
        default: Variant,
        images: Tensor,
        batches: Sequence[Sequence[int]],
        journal: Journal,
        tell: Callable[[str, int], object] = lambda what, done: None,
    ) -> None:
        self.default, self.journal, self.tell = default, journal, tell
        self.base = unpatched_lane(model, images)
        self._batches = [images[list(batch)] for batch in batches]
        self._images = [digest(batch) for batch in self._batches]
        self.about = [digest_of_model(self.base), torch.__version__, version("tokenreduce"), str(images.device)]
        self._codes: dict[str, str] = {}
        self._reductions: dict[str, Reduction] = {}
        self._reference: dict[int, list[Tensor]] = {}
        _, backbone, adapter = find_backbone(self.base)
        self.geometry = adapter.geometry(backbone)
        self.depth = self.geometry.depth
        self.tokens = self._count_tokens(images[:1])
        self.kinds = KINDS[: len(self.reference(0))]

    def _count_tokens(self, image: Tensor) -> int:
        """Image tokens that enter, which the model knows of images of its own size alone."""
        lane = patched_lane(
            self.base, Arm(self.default.method, schedule=Schedule.keep({0: 1.0}), **self.default.options)
        )
        with torch.inference_mode():
            lane(image)
        return report(lane).input_tokens

    @property
    def all(self) -> range:
        """The numbers of all batches."""
        return range(len(self._batches))

    def reference(self, batch: int) -> list[Tensor]:
        """What the unpatched model makes of a batch."""
        if batch not in self._reference:
            self._reference[batch] = self._features(self.base, batch)
        return self._reference[batch]

    def own(self, variant: Variant, flops: float) -> Candidate:
        """The variant with its method's own shape, at no more than this share of the multiply-adds.

        Raises: ValueError for a method that the model cannot carry, or a budget that it cannot reach.
        """
        asked, less = flops, 0.0
        while (found := self._nearest(variant, asked)).share > flops:
            # A budget gives the nearest counts, here those above it. A step that doubles, begun with how far they are
            # above, comes nearer to the next ones below and never past them.
            less = max(2 * less, found.share - flops, LEAST_STEP)
            asked -= less
            if asked <= 0:
                raise InvalidValueError(f"{variant} keeps {found.share:.3f} of the multiply-adds at least")
        return found

    def _nearest(self, variant: Variant, flops: float) -> Candidate:
        """The variant with its method's own shape at the share of the multiply-adds nearest to this one."""
        schedule = Schedule.budget(create(variant.method, variant.options).shape, flops=flops)
        reduction = reduction_of(patched_lane(self.base, Arm(variant.method, schedule=schedule, **variant.options)))
        counts = reduction.counts(self.tokens)
        return Candidate(variant, schedule, reduction.share(self.tokens, counts), counts)

    def shaped(self, variant: Variant, curve: Curve, flops: float) -> Candidate:
        """The variant with the shape of `curve`.

        Raises: ValueError as in `own`.
        """
        reduction = self._reduction(variant)
        return self.counted(variant, resolve(curve, reduction, self.tokens, flops), curve)

    def counted(self, variant: Variant, counts: Counts, curve: Curve | None = None) -> Candidate:
        """The variant with these counts."""
        entered = (self.tokens, *counts[:-1])
        kept = {layer: left for layer, (left, now) in enumerate(zip(counts, entered, strict=True)) if left < now}
        schedule = Schedule.keep(kept) if kept else Schedule.keep({0: 1.0})
        return Candidate(variant, schedule, self._reduction(variant).share(self.tokens, counts), counts, curve)

    def _reduction(self, variant: Variant) -> Reduction:
        """A patch of this variant, to ask what counts cost."""
        if str(variant) not in self._reductions:
            arm = Arm(variant.method, schedule=Schedule.keep({0: 1.0}), **variant.options)
            self._reductions[str(variant)] = reduction_of(patched_lane(self.base, arm))
        return self._reductions[str(variant)]

    def errors(self, candidate: Candidate, batches: Sequence[int]) -> Tensor:
        """Errors `(images, kinds)` float64 on the images of these batches."""
        lane, found = None, []
        for batch in batches:
            facts = {**candidate.to_json(), "schedule": candidate.schedule.to_json()}
            key = digest(*self.about, self.code(candidate.variant.method), self._images[batch], facts)
            value = self.journal.get(key)
            if value is None:
                lane = lane or self._lane(candidate)
                value = self._measure(lane, batch).tolist()
                self.journal.add(key, value, candidate.to_json() | {"batch": batch})
            found.append(torch.tensor(value, dtype=torch.float64))
            self.tell(str(candidate.variant), len(value))
        return torch.cat(found)

    def code(self, method: str) -> str:
        """A digest of the code of a method."""
        if method not in self._codes:
            self._codes[method] = digest_of_method(method)
        return self._codes[method]

    def _lane(self, candidate: Candidate) -> nn.Module:
        arm = Arm(candidate.variant.method, schedule=candidate.schedule, **candidate.variant.options)
        return restored_lane(self.base, arm).eval()

    def _measure(self, lane: nn.Module, batch: int) -> Tensor:
        distances = map(distance, self._features(lane, batch), self.reference(batch))
        return torch.stack([each if each.ndim == 1 else each.mean(1) for each in distances], 1)

    def _features(self, model: nn.Module, batch: int) -> list[Tensor]:
        with torch.inference_mode():
            return features(model, self._batches[batch], self.geometry, self.tokens)
