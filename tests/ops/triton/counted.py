"""What a model launches by Triton's operators in its reducing layers, counted without a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from launches import launches_of_all
from recorded import recorded

from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import launching
from tokenreduce.ops.triton.table import OPERATORS

ATTENTION = "_attend"  # one launch, as attention without sizes is: it takes the place of the model's own


def launches_by_triton(method: str, **budget: Any) -> tuple[int, Counter[str], Counter[str]]:
    """As `launches_of_all`: how many layers reduce, launches of Triton's kernels by name, and those of PyTorch beside
    them by operator.

    The operators run as plain functions, so that what they launch beside their kernels counts too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_for_gpu", OPERATORS.__getitem__)
        patch.setattr(launching, "why_not", lambda: "")
        with recorded(zeros=False) as made, dispatch.using("triton"), sized_attention.using("triton"):
            reducing, others = launches_of_all(method, **budget)
    return reducing, Counter(launch.name for launch in made), +others
