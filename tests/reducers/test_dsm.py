"""`dsm` against a slow reference written straight from section 11 of the specification."""

from __future__ import annotations

import pytest
import timm
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / (max(float(a.norm()), 1e-6) * max(float(b.norm()), 1e-6))


def reference(case: Case, places: list, windows: int, even: bool, local: bool, keep: int) -> list[list[int]]:
    """The members of each output, its representative first."""

    def window(i: int) -> tuple[int, ...]:
        if not local:
            return ()
        return tuple(int(float(p) // (side / windows)) for p, side in zip(places[i], case.grid, strict=True))

    sources = [i for i in range(case.n) if (case.prefix + i) % 2 == 0]
    targets = [i for i in range(case.n) if (case.prefix + i) % 2 == 1]

    def best(a: int, among: list[int]) -> tuple[float, int, int]:
        score = {b: cosine(case.mean_keys[a], case.mean_keys[b]) for b in among}
        target = max(among, key=lambda b: (score[b], -b))
        return score[target], a, target

    inside, outside = [], []
    for a in sources:
        same = [b for b in targets if window(a) == window(b)]
        (inside if same else outside).append(best(a, same or targets))
    order = [sorted(edges, key=lambda edge: (-edge[0], edge[1])) for edges in (inside, outside)]
    if even and local:  # the best of each window, then the second best of each
        places = [window(a) for _, a, _ in order[0]]
        turns = sorted((places[:i].count(place), i) for i, place in enumerate(places))
        order[0] = [order[0][i] for _, i in turns]
    edges = order[0] + order[1]
    merged, rest = edges[: case.n - keep], edges[case.n - keep :]
    return [[a] for a in sorted(a for _, a, _ in rest)] + [[b] + [a for _, a, t in merged if t == b] for b in targets]


@settings(max_examples=150, deadline=None)
@given(cases(least=2), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 11), st.data())
def test_matches_the_specification(case, windows, even, moved, layer, data) -> None:
    keep = data.draw(st.integers(case.n - case.n // 2, case.n - 1))
    height, width = case.grid
    places = torch.tensor([[y, x] for y in range(height) for x in range(width)], dtype=torch.float)
    if moved:  # quarters of a cell, as mean places of merged tokens have them
        places = torch.stack([torch.randint(0, 4 * side - 3, (case.n,)) / 4 for side in case.grid], 1)
    token_map = tokenreduce.plan(
        case.x,
        "dsm",
        keep=keep,
        grid=case.grid,
        positions=places[None] if moved else None,
        layer=layer,
        depth=12,
        windows=windows,
        even=even,
        **case.arguments("keys"),
    )
    groups = reference(case, places, windows, even, layer < 8, keep)  # blocks 4 to 7 are the first half after the delay
    assert token_map.rep[0].tolist() == [group[0] for group in groups]
    assert token_map.dest[0].tolist() == [next(m for m, g in enumerate(groups) if i in g) for i in range(case.n)]
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    for m, group in enumerate(groups):
        total = sum(case.mass[i] for i in group)
        assert sizes[0, m] == total
        assert torch.allclose(y[0, m], sum(case.mass[i] * case.x[0, i] for i in group) / total, atol=1e-5)


def test_windows_of_7_on_a_grid_of_14() -> None:
    x = torch.randn(1, 196, 8)
    token_map = tokenreduce.plan(x, "dsm", keep=150, grid=(14, 14), layer=4, depth=12)
    for i, m in enumerate(token_map.dest[0].tolist()):
        j = int(token_map.rep[0, m])
        assert (i // 14 // 7, i % 14 // 7) == (j // 14 // 7, j % 14 // 7)


def test_every_window_merges_a_quarter() -> None:
    """As the README of the authors' repository says; not so by default."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 196, 8, generator=g) + torch.linspace(0, 3, 196)[:, None]  # more alike further down
    arguments = {"keep": 156, "grid": (14, 14), "layer": 4, "depth": 12}
    for even in (True, False):
        token_map = tokenreduce.plan(x, "dsm", even=even, **arguments)
        windows = token_map.rep // 14 // 7 * 2 + token_map.rep % 14 // 7
        left = [torch.bincount(image, minlength=4).tolist() for image in windows]
        assert (left == [[39] * 4] * 2) == even


def test_one_window_and_late_blocks_are_tome() -> None:
    x = torch.randn(2, 36, 8)
    tome = tokenreduce.plan(x, "tome", keep=20).dense()
    for options in ({"layer": 4, "windows": 1}, {"layer": 8, "grid": (6, 6)}, {"layer": 11, "grid": (6, 6)}):
        assert torch.equal(tokenreduce.plan(x, "dsm", keep=20, depth=12, **options).dense(), tome)
    assert not torch.equal(tokenreduce.plan(x, "dsm", keep=20, depth=12, layer=7, grid=(6, 6)).dense(), tome)


def test_the_first_third_of_the_blocks_is_left_alone() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    tokenreduce.patch(model, "dsm", ratio=0.5)
    counts = tokenreduce.report(model).tokens
    assert counts[:4] == (16,) * 4 and counts[4] < 16 and counts[-1] == 8
    model(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(("flops", "first"), [(0.8, 4), (0.6, 0)])
def test_the_delay_shrinks_with_the_budget(flops, first) -> None:
    model = timm.create_model("deit_tiny_patch16_224").eval()
    counts = tokenreduce.report(tokenreduce.patch(model, "dsm", flops=flops)).tokens
    assert counts[:first] == (196,) * first and 196 / 6 <= counts[-1] < counts[first] < 196


def test_options_are_checked_and_a_grid_is_needed() -> None:
    with pytest.raises(ValueError, match="windows is 0; it must be finite and at least 1"):
        create("dsm", {"windows": 0})
    with pytest.raises(TypeError, match=r"windows is 2\.0; it must be of type int"):
        create("dsm", {"windows": 2.0})
    with pytest.raises(TypeError, match=r"even is 1; it must be of type bool"):
        create("dsm", {"even": 1})
    with pytest.raises(ValueError, match="dsm needs grid, positions; pass it to plan"):
        tokenreduce.plan(torch.randn(1, 8, 4), "dsm", keep=5)
