"""Errors over those of `tome`: of the means, which few images with large errors decide, and of image by image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.lab.quality.bootstrap import draw, interval
from tokenreduce.lab.quality.features import LEAST

DRAWS = 2000


def of_tome(name: str, own: Tensor, tome: Tensor, weights: Tensor) -> dict[str, Any]:
    """What `name`, such as "class_error", is in multiples of `tome`'s, with 95 % intervals: the ratio of the means
    (`_of_tome`), and the geometric mean of the images' ratios (`_of_tome_geometric`).

    Args:
        own, tome: errors of each image, `(images,)`.
        weights: of each image in each draw of the bootstrap, `(draws, images)`; a draw's are 1 in all.
    """
    ratios = own.clamp_min(LEAST).log() - tome.clamp_min(LEAST).log()
    return {
        f"{name}_of_tome": float(own.mean() / tome.mean()),
        f"{name}_of_tome_interval": interval((weights @ own) / (weights @ tome)),
        f"{name}_of_tome_geometric": float(ratios.mean().exp()),
        f"{name}_of_tome_geometric_interval": interval((weights @ ratios).exp()),
    }


def source_weights(sources: Tensor, rounds: int = DRAWS) -> Tensor:
    """Weights `(rounds, images)` where photographs are drawn again, each with all the images that were cut out of it:
    those of one photograph resemble each other, so that drawing images would make intervals too narrow.

    Args:
        sources: number of the photograph of each image, `(images,)`.
    """
    often = draw(int(sources.max()) + 1, rounds)[:, sources]
    return often / often.sum(1, keepdim=True)
