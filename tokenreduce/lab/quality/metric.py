"""`Metric`: the running figures of one model, and what a paired bootstrap over its images needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.quality.bootstrap import draw, interval


class Metric(ABC):
    """The figures of one model on the images so far; `headline` names the one that changes are given of."""

    headline: ClassVar[str]

    @property
    @abstractmethod
    def images(self) -> int:
        """How many images there were so far."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures of all images so far, fractions of 1 (`rmse`: metres).

        Raises: ValueError if there was nothing to measure on.
        """

    @abstractmethod
    def give(self) -> Any:
        """What it was shown so far, as JSON, for `take_in` of another metric of this kind; it has seen nothing then."""

    @abstractmethod
    def take_in(self, given: Any) -> None:
        """Add what another metric was shown, as if the images came next."""

    @abstractmethod
    def resampled(self, times: Tensor) -> Tensor:
        """The headline figure `(rounds,)` where each image counts `times` `(rounds, images)` often."""


def as_lists(figures: dict[str, Tensor]) -> dict[str, list[float]]:
    """Figures of images as JSON, which holds every float64 exactly."""
    return {name: values.tolist() for name, values in figures.items()}


def as_tensors(figures: dict[str, list[float]]) -> dict[str, Tensor]:
    """The same back, float64."""
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()}


def change_interval(reference: Metric, metric: Metric, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the headline figure of `metric` minus that of `reference`, by a paired bootstrap: both are
    measured on the same draws of the images. Both must have seen the same images in the same order.

    Raises: ValueError if they cannot be compared.
    """
    if type(reference) is not type(metric) or reference.images != metric.images:
        raise InvalidValueError(
            f"a {type(metric).__name__} of {metric.images} images cannot be compared with a "
            f"{type(reference).__name__} of {reference.images}; measure both models on the same images"
        )
    times = draw(metric.images, rounds, seed)
    return interval(metric.resampled(times) - reference.resampled(times))
