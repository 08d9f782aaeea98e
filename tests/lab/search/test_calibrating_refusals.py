"""Wrong arguments of `calibrate` are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_calibrating import small_vit, some_images

from tokenreduce import calibrate
from tokenreduce.errors import InvalidTypeError, InvalidValueError

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({}, "exactly one of flops, error and latency, for example flops=0.6$"),
    "two budgets": ({"flops": 0.6, "error": 0.1}, "exactly one of flops, error and latency"),
    "three budgets": ({"error": 0.1, "latency": 0.6}, "exactly one of flops, error and latency"),
    "time": ({"latency": 1.5}, "lies between 0 and 1"),
    "batch": ({"latency": 0.5, "batch_size": 0}, "number of images in a forward"),
    "share": ({"flops": 1.2}, "lies between 0 and 1"),
    "text": ({"error": "small"}, "must be a number"),
    "method": ({"flops": 0.6, "methods": ["tomme"]}, "did you mean 'tome'"),
    "second method": ({"flops": 0.6, "methods": ["tome", "warrd"]}, "did you mean 'ward'"),
    "second option": ({"flops": 0.6, "methods": ["ward", ("tome", {"colour": 1})]}, "unknown option of tome"),
    "keep and more": ({"flops": 0.6, "keep": 0.1}, "keep is for prompts with images"),
    "misfit": ({"flops": 0.6, "methods": ["dtop"]}, "cannot run on this model"),
    "one name": ({"flops": 0.6, "methods": "tome"}, r"give a list, such as \['tome'\]"),
    "none": ({"flops": 0.6, "methods": []}, "is empty"),
    "option": ({"flops": 0.6, "methods": [("tome", {"colour": 1})]}, "unknown option of tome"),
    "labels": ({"flops": 0.6, "sources": [1, 2]}, "2 labels for 4 images"),
    "one source": ({"flops": 0.6, "sources": [1, 1, 1, 1]}, "of one source"),
    "trials": ({"flops": 0.6, "trials": -1}, "number of candidates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case: str) -> None:
    arguments, message = WRONG[case]
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        calibrate(small_vit(), some_images(4), **arguments)


@pytest.mark.parametrize("images", [torch.zeros(3, 32, 32), torch.zeros(4, 3, 32, 32).byte(), [], "photographs", 3])
def test_wrong_images_are_named(images: Any) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match="images"):
        calibrate(small_vit(), images, flops=0.6)
