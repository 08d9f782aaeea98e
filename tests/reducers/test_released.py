"""What the authors' released code selects and outputs for one input, against ours.

The constants came out of that code, run outside of this project; `checked` of each method names the commit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenreduce

N, SIDE = 36, 6  # image tokens behind one class token


def wave(*shape: int) -> Tensor:
    """Numbers that are the same on every machine, no two alike."""
    return (torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) ** 1.3).sin().float().view(shape)


X, KEYS = wave(1, N + 1, 8)[:, 1:] + 0.4, wave(1, 2, N + 1, 4)[:, :, 1:] + 0.5
ATTENTION = (4 * wave(1, 2, N + 1, N + 1)).softmax(-1)
SIZES = 1 + (torch.arange(1, N + 1) % 3).float()[None]

# For each method the first token of every token's group, the sum of squares of the outputs, and that of their sizes.
RELEASED: list[tuple[str, dict[str, Any], str, float, float]] = [
    (
        "pitome",
        {"layer": 2},
        "0 1 2 3 4 5 6 7 5 9 10 11 12 6 5 15 16 17 18 5 20 21 22 23 24 25 23 27 25 29 30 29 32 6 34 20",
        124.0208,
        252.0,
    ),
    (
        "pitome",
        {"layer": 8},
        "0 1 2 3 3 5 6 7 5 9 10 11 12 6 5 15 15 17 18 5 20 21 22 11 24 25 26 27 28 29 30 31 32 20 34 20",
        132.3843,
        240.0,
    ),
    (
        "diffrate",
        {},
        "0 1 2 3 3 5 6 7 7 6 10 11 12 13 13 15 16 17 18 19 2 21 22 23 2 21 26 27 18 17 30 31 32 33 33 35",
        122.3442,
        230.9348,
    ),
    (
        "mctf",
        {},
        "0 1 2 3 3 5 6 7 7 9 10 11 12 13 13 15 16 17 18 19 20 20 22 23 23 20 26 27 28 23 30 28 32 33 32 32",
        126.4905,
        256.0,
    ),
    (
        "tofu",
        {"layer": 8, "merge": "mean"},
        "0 1 2 3 3 5 6 7 8 9 10 11 12 13 5 5 16 17 18 5 20 21 22 23 24 25 23 24 28 24 30 20 32 33 34 20",
        132.9452,
        0.0,
    ),
    (
        "algm",
        {"layer": 0},
        "0 1 2 2 4 5 6 7 2 2 10 11 12 13 14 14 16 16 18 19 14 14 16 16 24 24 26 27 28 28 24 24 32 33 28 28",
        92.0892,
        382.0,
    ),
    (
        "algm",
        {"layer": 4, "grid": (7, 7)},
        "0 1 2 3 3 5 6 7 7 9 10 11 12 13 13 15 16 17 18 19 20 21 21 23 23 20 26 27 28 29 30 28 32 33 33 33",
        137.6508,
        254.0,
    ),
    (
        "atc",
        {"linkage": "average"},
        "0 1 2 3 3 5 6 7 8 9 10 11 12 13 5 5 16 17 18 5 20 21 22 23 24 25 23 24 22 24 30 20 32 33 34 20",
        128.3951,
        264.0,
    ),
    (
        "atc",
        {"linkage": "complete"},
        "0 1 2 3 3 5 6 7 8 9 10 11 12 13 5 15 16 17 18 15 20 21 22 23 24 25 23 24 22 24 30 20 32 13 34 20",
        121.4926,
        256.0,
    ),
    (
        "atc",
        {"linkage": "single"},
        "0 1 2 3 3 0 6 7 8 9 10 11 12 13 0 0 16 17 18 0 20 21 22 23 24 25 23 24 28 24 30 20 32 33 34 20",
        127.9616,
        274.0,
    ),
    (
        "dpc_knn",
        {},
        "0 1 2 3 4 5 6 7 8 2 8 11 12 13 5 15 8 17 17 15 20 21 22 23 24 22 23 24 28 29 30 20 32 33 34 35",
        114.6859,
        0.0,
    ),
    (
        "centerclip",
        {"grid": (1, 6, 6), "iterations": 60},
        "0 1 2 1 1 5 1 7 7 7 10 0 10 10 10 15 15 0 15 0 20 20 15 2 20 20 15 0 15 0 10 15 0 0 0 0",
        47.6654,
        0.0,
    ),
    (
        "kmedoids",
        {"metric": "features", "seeding": "kkz", "iterations": 60},
        "0 1 2 3 3 5 3 7 7 7 10 0 10 10 10 15 15 0 15 0 20 20 15 3 20 20 15 0 15 0 10 15 0 0 0 0",
        41.7256,
        0.0,
    ),
    (
        "spectral",  # whose authors' sigma is absolute: half a median distance here
        {"iterations": 60},
        "0 1 0 3 3 0 3 7 7 7 10 11 12 10 10 10 12 17 12 17 20 20 0 0 20 20 0 17 12 17 10 12 11 11 11 11",
        42.0362,
        0.0,
    ),
]


@pytest.mark.parametrize(("method", "options", "groups", "squares", "sizes"), RELEASED)
def test_selections_and_outputs_are_those_of_the_released_code(method, options, groups, squares, sizes) -> None:
    first = [int(token) for token in groups.split()]
    given = {"keys": KEYS, "attention": ATTENTION, "grid": (SIDE, SIDE), "prefix": 1, "depth": 12}
    if sizes:
        given["sizes"] = SIZES
    token_map = tokenreduce.plan(X, method, keep=len(set(first)), **given | options)
    labels = token_map.dest[0].tolist()
    assert [labels.index(label) for label in labels] == first
    y, grown = tokenreduce.apply(token_map, X, SIZES if sizes else None)
    assert float(y.double().square().sum()) == pytest.approx(squares, rel=1e-5)
    assert not sizes or float(grown.double().square().sum()) == pytest.approx(sizes, rel=1e-5)
