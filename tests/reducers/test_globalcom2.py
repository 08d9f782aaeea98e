"""`globalcom2` against loops over crops."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.globalcom2 import apportion


def layout(side: int, down: int, across: int, cut: tuple[int, int]) -> list[tuple[int, int, int]]:
    """A small image of `side` x `side` and so many crops of the same size, of which padding `cut` off rows and columns
    at each end is gone; every row ends with a token of its own."""
    found = [(0, y, x) for y in range(side) for x in range(side)]
    for y in range(cut[0], down * side - cut[0]):
        for x in range(cut[1], across * side - cut[1]):
            found.append((1 + (y // side) * across + x // side, y - cut[0], x - cut[1]))
        found.append((-1, y - cut[0], across * side - 2 * cut[1]))
    return found


def resized(grid: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Bilinear, with the centres of cells where they are (`align_corners=False`)."""

    def at(place: int, length: int, old: int) -> tuple[int, int, float]:
        where = max(0.0, (place + 0.5) * old / length - 0.5)
        low = min(int(where), old - 1)
        return low, min(low + 1, old - 1), where - low

    found = []
    for y in range(height):
        top, bottom, down = at(y, height, len(grid))
        row = []
        for x in range(width):
            left, right, across = at(x, width, len(grid[0]))
            upper = grid[top][left] * (1 - across) + grid[top][right] * across
            lower = grid[bottom][left] * (1 - across) + grid[bottom][right] * across
            row.append(upper * (1 - down) + lower * down)
        found.append(row)
    return found


def wanted(g: list[list[float]], crops: list[list[int]], down: int, across: int, share: float) -> list[float]:
    """How much of each crop stays."""
    side = len(g)
    high, wide = max(1, side // down), max(1, side // across)
    sums = []
    for j in range(len(crops)):
        y, x = divmod(j, across)
        rows = range(y * high, side if y == down - 1 else (y + 1) * high)
        columns = range(x * wide, side if x == across - 1 else (x + 1) * wide)
        sums.append(sum(math.log(g[a][b]) for a in rows for b in columns) / 10)
    most = max(sums)
    parts = [math.exp(s - most) for s in sums]
    weight = [part / sum(parts) for part in parts]
    return [min(1, share * (1 + w - 1 / len(crops))) * len(crop) for w, crop in zip(weight, crops, strict=True)]


def choose(score: list[float], tokens: list[tuple[int, int, int]], shape: tuple[int, int, int], keep: int) -> list[int]:
    side, down, across = shape
    ends = [i for i, token in enumerate(tokens) if token[0] < 0]
    ends = ends if 2 * len(ends) <= keep else []
    parts = [[i for i, token in enumerate(tokens) if token[0] == n] for n in range(down * across + 1)]
    share = (keep - len(ends)) / sum(map(len, parts))
    g = [[score[y * side + x] for x in range(side)] for y in range(side)]
    each = [share * len(parts[0]), *wanted(g, parts[1:], down, across, share)]
    counts = apportion(each, [len(part) for part in parts], keep - len(ends))
    height, width = (1 + max(tokens[i][axis] for part in parts[1:] for i in part) for axis in (1, 2))
    of_all = resized(g, height, width)
    kept = ends + sorted(parts[0], key=lambda i: (-score[i], i))[: counts[0]]
    for part, count in zip(parts[1:], counts[1:], strict=True):
        own, small = [score[i] for i in part], [of_all[tokens[i][1]][tokens[i][2]] for i in part]
        lengths = [math.sqrt(sum(s * s for s in some)) for some in (own, small)]
        rank = {i: a / lengths[0] + b / lengths[1] for i, a, b in zip(part, own, small, strict=True)}
        kept += sorted(part, key=lambda i: -rank[i])[:count]
    return sorted(kept)


SHAPES = [
    (4, 1, 2, (0, 0)),
    (4, 2, 2, (1, 0)),
    (6, 2, 1, (0, 2)),
    (6, 3, 2, (0, 1)),
    (5, 2, 3, (1, 0)),
    (4, 1, 1, (0, 1)),
]


@given(st.sampled_from(SHAPES), st.integers(0, 10**6), st.data())
@settings(max_examples=80, deadline=None)
def test_matches_the_specification(shape, seed, data) -> None:
    side, down, across, cut = shape
    tokens = layout(side, down, across, cut)
    keep = data.draw(st.integers(1, len(tokens) - 1))
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(1, len(tokens), generator=generator) * 0.9 + 0.05
    x = torch.randn(1, len(tokens), 3, generator=generator)
    more = {"class_attention": score, "crops": torch.tensor([tokens])}
    token_map = tokenreduce.plan(x, "globalcom2", keep=keep, **more)
    patches = sum(token[0] >= 0 for token in tokens)
    if keep <= patches:
        assert token_map.rep[0].tolist() == choose(score[0].double().tolist(), tokens, (side, down, across), keep)
    else:
        assert len(token_map.rep[0].unique()) == keep


def test_a_crop_that_is_looked_at_keeps_more() -> None:
    tokens = layout(4, 2, 2, (0, 0))
    score = torch.full((1, len(tokens)), 0.01)
    for i, (n, y, x) in enumerate(tokens):
        if n == 0 and y < 2 and x >= 2:  # the second crop
            score[0, i] = 0.5
    crops = torch.tensor([tokens])
    kept = tokenreduce.plan(
        torch.zeros(1, len(tokens), 2), "globalcom2", keep=40, class_attention=score, crops=crops
    ).rep
    counts = torch.bincount(crops[0, kept[0], 0] + 1, minlength=6).tolist()
    others = (counts[2], counts[4], counts[5])
    assert counts[0] == 8 and counts[3] > max(others) + 1 and max(others) - min(others) <= 1 and sum(counts) == 40


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 20)), min_size=1, max_size=8), st.data())
def test_counts_are_exact(parts, data) -> None:
    wanted, sizes = [w for w, _ in parts], [n for _, n in parts]
    total = data.draw(st.integers(0, sum(sizes)))
    counts = apportion(wanted, sizes, total)
    assert sum(counts) == total and all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if sum(wanted) <= total and all(w <= n for w, n in parts):
        assert all(count >= math.floor(w) for count, w in zip(counts, wanted, strict=True))


def test_images_of_a_batch_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = layout(4, 1, 2, (0, 0)), layout(4, 2, 1, (0, 0))
    n = min(len(first), len(second))
    crops = torch.tensor([first[:n], second[:n]])
    x, score = torch.randn(2, n, 3, generator=generator), torch.rand(2, n, generator=generator)
    both = tokenreduce.plan(x, "globalcom2", keep=20, class_attention=score, crops=crops).rep
    for i in range(2):
        one = {"class_attention": score[i : i + 1], "crops": crops[i : i + 1]}
        assert torch.equal(tokenreduce.plan(x[i : i + 1], "globalcom2", keep=20, **one).rep[0], both[i])


def test_more_tokens_of_the_small_image_stay_with_more_to_keep() -> None:
    tokens = layout(4, 2, 2, (0, 0))
    crops, score = torch.tensor([tokens]), torch.rand(1, len(tokens), generator=torch.Generator().manual_seed(1)) + 0.1
    found = []
    for keep in (20, 40, 60, 80):
        more = {"class_attention": score, "crops": crops}
        kept = tokenreduce.plan(torch.zeros(1, len(tokens), 2), "globalcom2", keep=keep, **more).rep[0]
        found.append(int((crops[0, kept, 0] == 0).sum()))
    assert all(a < b for a, b in pairwise(found))


def test_what_it_needs() -> None:
    with pytest.raises(ValueError, match="globalcom2 needs crops"):
        tokenreduce.plan(torch.zeros(1, 6, 2), "globalcom2", keep=3, class_attention=torch.rand(1, 6))
