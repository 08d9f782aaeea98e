"""The measuring engine on lanes whose figures are known, the bootstrap against a slow one, and arms out of reach."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.quality.bootstrap import draw, interval, times
from tokenreduce.lab.quality.engine import Lane, measure_lanes, teller
from tokenreduce.lab.quality.metric import Metric


class Mean(Metric):
    """The mean of the numbers it is given."""

    headline = "mean"

    def __init__(self) -> None:
        self.numbers: list[float] = []

    @property
    def images(self) -> int:
        return len(self.numbers)

    def compute(self) -> dict[str, float]:
        return {"mean": sum(self.numbers) / len(self.numbers)}

    def give(self) -> list[float]:
        given, self.numbers = self.numbers, []
        return given

    def take_in(self, given: list[float]) -> None:
        self.numbers += given

    def resampled(self, times: Tensor) -> Tensor:
        return times @ torch.tensor(self.numbers).double() / times.sum(1)


class Numbers(Lane):
    """Images are numbers, the reference is what the unpatched lane saw, and this lane is off by `off`."""

    def __init__(self, arm: Arm | None, model: nn.Module, off: float = 0.0) -> None:
        super().__init__(arm, model, Mean())
        self.off, self.references = off, []

    def take(self, batch: list[float], reference: Any) -> str:
        self.metric.numbers += [number + self.off for number in batch]
        self.references.append(reference)
        if self.adaptive:
            self.note(len(batch), 100 * batch[0], 10 * batch[0])
        return f"seen {batch}"

    def count(self, batch: list[float]) -> dict[str, Any]:
        self.model(torch.zeros(1, 3, 32, 32))
        return {"macs": 1000 if self.arm is None else 400, "uncounted": {}}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5).eval()


def lanes(model: nn.Module, *arms: Arm) -> list[Numbers]:
    return [Numbers(None, model), *(Numbers(arm, patched_lane(model, arm), 0.5) for arm in arms)]


def test_every_lane_sees_every_batch_with_the_reference(model: nn.Module) -> None:
    told: list[int] = []
    found = lanes(model, Arm("tome", r=3))
    full, row = measure_lanes(found, [[1.0, 2.0], [6.0]], rounds=20, tell=told.append)
    assert told == [0, 2]
    assert found[0].references == [None, None] and found[1].references == ["seen [1.0, 2.0]", "seen [6.0]"]
    assert full == {
        "method": "unpatched",
        "budget": None,
        "options": {},
        "macs": 1000,
        "uncounted": {},
        "mean": 3.0,
        "tokens_left": 16,
        "flops_share": 1.0,
        "change": 0.0,
        "change_interval": (0.0, 0.0),
    }
    assert (row["method"], row["budget"], row["macs"], row["tokens_left"]) == ("tome", "r=3", 400, 7)
    assert (row["flops_share"], row["mean"], row["change"]) == (0.4, 3.5, 0.5)
    assert row["change_interval"] == pytest.approx((0.5, 0.5)), "pairing leaves no noise"


def test_amounts_of_an_adaptive_method_are_means_over_images(model: nn.Module) -> None:
    """Four images with 100 MACs and 10 tokens each, one with 600 and 60."""
    _, row = measure_lanes(lanes(model, Arm("ats")), [[1.0, 1.0, 1.0, 1.0], [6.0]])
    assert (row["macs"], row["tokens_left"], row["flops_share"], row["budget"]) == (200, 20, 0.2, "none")


def test_without_batches_or_rounds(model: nn.Module) -> None:
    with pytest.raises(InvalidValueError, match="there are no images to measure on"):
        measure_lanes(lanes(model), [])
    assert "change_interval" not in measure_lanes(lanes(model), [[1.0]])[0]


def test_progress_is_the_fraction_of_images() -> None:
    told: list[tuple[float, str]] = []
    tell = teller(lambda part, what: told.append((part, what)), 8)
    tell(0), tell(6)
    assert told == [(0, "8 images"), (0.75, "8 images")]
    teller(None, 8)(3)


def test_arms_out_of_reach_are_rows(model: nn.Module) -> None:
    arms = [Arm("pool", ratio=0.999), Arm("random", ratio=0.5), Arm("pool", ratio=0.99)]
    [(arm, lane)], refused = try_arms(arms, lambda arm: patched_lane(model, arm))
    assert arm is arms[1] and lane is not model
    assert [(row["method"], row["budget"]) for row in refused] == [("pool", "ratio=0.999"), ("pool", "ratio=0.99")]
    assert all("asks for" in row["refused"] and row["options"] == {} for row in refused)
    with pytest.raises(InvalidValueError, match=r"ratio=0\.999 asks for .*; ratio=0\.99 asks for"):
        try_arms([arms[0], arms[2]], lambda arm: patched_lane(model, arm))
    assert try_arms([], lambda arm: patched_lane(model, arm)) == ([], [])
    with pytest.raises(ZeroDivisionError):
        try_arms(arms, lambda arm: 1 / 0)


def test_draws_hold_as_many_images_as_there_are() -> None:
    drawn = draw(7, 300, seed=1)
    assert drawn.shape == (300, 7) and (drawn.sum(1) == 7).all() and torch.equal(drawn, draw(7, 300, seed=1))
    assert not torch.equal(drawn, draw(7, 300, seed=2))
    assert drawn.mean().item() == 1 and (drawn.mean(0) - 1).abs().max() < 0.2
    picks = torch.tensor([[0, 0, 2], [1, 1, 1]])
    assert times(picks, 4).tolist() == [[2, 0, 1, 0], [0, 3, 0, 0]]
    for images, rounds in ((0, 5), (5, 0)):
        with pytest.raises(InvalidValueError, match=f"rounds is {rounds} and there are {images} images"):
            draw(images, rounds)


def test_an_interval_is_the_middle_of_the_draws() -> None:
    values = [float(value) for value in range(1001)]
    random.Random(0).shuffle(values)
    assert interval(torch.tensor(values)) == (25.0, 975.0)
    assert interval(torch.tensor([*values, float("nan")])) == (25.0, 975.0), "draws without a figure do not count"
