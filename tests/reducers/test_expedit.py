"""`expedit` against a slow reference written straight from section 4 of the specification."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce import TokenMap
from tokenreduce.reducers.methods.expedit import Expedit, coarse_grid
from tokenreduce.reducers.tokens import Tokens


def weighted_mean(points: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    return sum(w * p for w, p in zip(weights, points, strict=True)) / sum(weights)


class Reference:
    """One image, token by token and centre by centre, in double precision."""

    def __init__(self, x: torch.Tensor, mass: list[float], grid: tuple[int, int], keep: int, options: dict) -> None:
        self.z, self.mass, (self.height, self.width) = list(x.double()), mass, grid
        defaults = {"window": 9, "iterations": 5, "neighbours": 20, "alone": 0.5, "sharpness": 16}
        self.options = defaults | options
        self.h, self.w = coarse_grid(*grid, max(1, keep - math.floor(self.options["alone"] * keep)))
        self.near = [self.candidates(i) for i in range(len(self.z))]
        self.centres = [self.pool(p) for p in range(self.h * self.w)]
        self.t = self.options.get("inverse_temperature")
        if self.t is None:
            nearest = sorted(min(self.distance(i, p) for p in near) for i, near in enumerate(self.near))
            mean = sum(self.z) / len(self.z)
            spread = sum(float((z - mean).square().sum()) for z in self.z) / len(self.z)
            self.t = self.options["sharpness"] / max(nearest[(len(nearest) - 1) // 2], 1e-3 * spread, 1e-12)
        for _ in range(self.options["iterations"]):
            self.share = [self.assign(i) for i in range(len(self.z))]
            self.centres = self.means()

    def candidates(self, i: int) -> list[int]:
        y, x = divmod(i, self.width)
        home, radius = (y * self.h // self.height, x * self.w // self.width), self.options["window"] // 2
        cells = [divmod(p, self.w) for p in range(self.h * self.w)]
        return [p for p, (a, b) in enumerate(cells) if max(abs(a - home[0]), abs(b - home[1])) <= radius]

    def pool(self, p: int) -> torch.Tensor:
        a, b = divmod(p, self.w)
        rows = range(a * self.height // self.h, math.ceil((a + 1) * self.height / self.h))
        columns = range(b * self.width // self.w, math.ceil((b + 1) * self.width / self.w))
        inside = [y * self.width + x for y in rows for x in columns]
        return weighted_mean([self.z[i] for i in inside], [self.mass[i] for i in inside])

    def distance(self, i: int, p: int) -> float:
        return float((self.z[i] - self.centres[p]).square().sum())

    def assign(self, i: int) -> list[float]:
        least = min(self.distance(i, p) for p in self.near[i])
        raw = [math.exp(-self.t * (self.distance(i, p) - least)) if p in self.near[i] else 0.0 for p in self.cells]
        floor = [1e-12 if p in self.near[i] else 0.0 for p in self.cells]
        return [max(r / sum(raw), f) for r, f in zip(raw, floor, strict=True)]

    @property
    def cells(self) -> range:
        return range(self.h * self.w)

    def means(self) -> list[torch.Tensor]:
        columns = zip(*self.share, strict=True)
        return [weighted_mean(self.z, [m * q for m, q in zip(self.mass, c, strict=True)]) for c in columns]

    def leave(self, alone: list[int]) -> None:
        """Tokens that become outputs of their own, behind the clusters."""
        for i in alone:
            self.share[i] = [1e-12 if p in self.near[i] else 0.0 for p in self.cells]
        self.centres = self.means() + [self.z[i] for i in alone]
        for i, row in enumerate(self.share):
            row += [float(i == a) for a in alone]


def options() -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(
        {},
        optional={
            "inverse_temperature": st.sampled_from([0, 0.05, 1.0]),
            "window": st.sampled_from([1, 3]),
            "iterations": st.sampled_from([1, 3]),
            "neighbours": st.sampled_from([1, 2, 3]),
            "alone": st.sampled_from([0, 0.3, 1]),
            "sharpness": st.sampled_from([2, 8]),
        },
    )


@settings(max_examples=80, deadline=None)
@given(cases(least=2), options(), st.data())
def test_matches_the_specification(case: Case, options: dict, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    if case.kind in ("ties", "zeros") and "inverse_temperature" not in options:
        options = options | {"iterations": 1}  # a large T: rounding tips over a balance of equal centres in time
    token_map = tokenreduce.plan(case.x, "expedit", keep=keep, grid=case.grid, **case.arguments(), **options)
    slow = Reference(case.x[0], case.mass, case.grid, keep, options)
    extra = keep - len(slow.cells)
    assert token_map.grid == (None if extra else (slow.h, slow.w))
    rep = token_map.rep[0].tolist()
    for p in slow.cells:
        members = [i for i in range(case.n) if p in slow.near[i]]
        assert rep[p] in members
        assert slow.distance(rep[p], p) <= 1.002 * min(slow.distance(i, p) for i in members) + 1e-3
    alone = rep[len(slow.cells) :]
    assert alone == sorted(set(alone))
    gaps = [min(slow.distance(i, p) for p in slow.cells) for i in range(case.n)]
    assert all(gaps[a] >= 0.998 * gaps[i] - 1e-3 for a in alone for i in range(case.n) if i not in alone)
    slow.leave(alone)
    share = torch.tensor(slow.share).T
    assert torch.allclose(token_map.share[0], share, atol=2e-3)
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    filled = share.sum(1) > 0.1  # the mean of a cluster that nobody is near to hangs on the last digits of its shares
    assert torch.allclose(y[0, filled], torch.stack(slow.centres).float()[filled], atol=2e-2)
    assert torch.allclose(y[0, len(slow.cells) :], case.x[0, alone], rtol=1e-6)
    assert math.isclose(float(sizes.sum()), sum(case.mass), rel_tol=1e-5) and (sizes > 0).all()
    check_undo(token_map.undo[0], slow, alone)


def check_undo(undo: torch.Tensor, slow: Reference, alone: list[int]) -> None:
    outputs = range(len(slow.centres))
    for i, row in enumerate(undo.tolist()):
        if i in alone:
            assert row == [float(p == len(slow.cells) + alone.index(i)) for p in outputs]
            continue
        distances = [slow.distance(i, p) for p in outputs]
        count = min(slow.options["neighbours"], len(outputs))
        assert sum(w > 0 for w in row) <= count and math.isclose(sum(row), 1, abs_tol=1e-5)
        chosen = [p for p in outputs if row[p] > 0]
        assert all(distances[p] <= sorted(distances)[count - 1] + 1e-3 for p in chosen)
        raw = [math.exp(-slow.t * (distances[p] - min(distances))) for p in outputs]
        total = sum(sorted(raw)[-count:])
        assert all(math.isclose(row[p], raw[p] / total, abs_tol=2e-3) for p in chosen)


def full_grid(x: torch.Tensor, grid: tuple[int, int], **options) -> TokenMap:
    return Expedit(**options, alone=0).plan(Tokens(x, grid=grid), x.shape[1])


def test_as_many_centres_as_tokens_and_no_temperature_is_the_identity() -> None:
    x = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    token_map = full_grid(x, (4, 5), inverse_temperature=1e5)
    assert torch.allclose(token_map.apply(x), x, atol=1e-6) and token_map.grid == (4, 5)
    assert torch.allclose(token_map.restore(token_map.apply(x)), x, atol=1e-6)


def test_infinite_temperature_and_no_window_is_the_mean() -> None:
    x = torch.randn(2, 48, 6, generator=torch.Generator().manual_seed(0))
    token_map = tokenreduce.plan(x, "expedit", keep=12, grid=(6, 8), inverse_temperature=0, window=9, alone=0)
    y = token_map.apply(x)
    assert torch.allclose(y, x.mean(1, keepdim=True).expand_as(y), atol=1e-5)
    assert torch.allclose(token_map.restore(y), x.mean(1, keepdim=True).expand_as(x), atol=1e-5)


def test_infinite_temperature_weighs_by_the_number_of_candidates() -> None:
    x = torch.randn(1, 48, 6, generator=torch.Generator().manual_seed(0))
    token_map = tokenreduce.plan(x, "expedit", keep=12, grid=(6, 8), inverse_temperature=0, window=3, alone=0)
    for p, y in enumerate(token_map.apply(x)[0]):
        homes = {i: (i // 8 // 2, i % 8 // 2) for i in range(48)}
        inside = [i for i, (a, b) in homes.items() if abs(a - p // 4) <= 1 and abs(b - p % 4) <= 1]
        candidates = [
            sum(abs(a - r) <= 1 and abs(b - c) <= 1 for r in range(3) for c in range(4))
            for a, b in (homes[i] for i in inside)
        ]
        assert torch.allclose(y, weighted_mean([x[0, i] for i in inside], [1 / c for c in candidates]), atol=1e-5)


@pytest.mark.parametrize("keep", [12, 14])
@pytest.mark.parametrize("magnitude", [1, 30, 1e3])
def test_restore_weights_stay_weights_far_from_every_centre(keep, magnitude) -> None:
    x = magnitude * torch.randn(2, 48, 6, generator=torch.Generator().manual_seed(0))
    for options in ({}, {"inverse_temperature": 1.0}):
        undo = tokenreduce.plan(x, "expedit", keep=keep, grid=(6, 8), neighbours=5, **options).undo_matrix()
        assert (undo >= 0).all() and ((undo > 0).sum(-1) <= 5).all()
        assert torch.allclose(undo.sum(-1), torch.ones(2, 48), atol=1e-5)


def test_a_constant_map_stays_what_it_is() -> None:
    x = torch.randn(2, 1, 64).expand(2, 48, 64) * 37
    for keep in (12, 20, 47):
        token_map = tokenreduce.plan(x, "expedit", keep=keep, grid=(6, 8))
        y = token_map.apply(x)
        assert torch.allclose(y, x[:, :keep], rtol=1e-5) and torch.allclose(token_map.restore(y), x, rtol=1e-5)


def test_the_default_temperature_follows_the_scale_of_the_features() -> None:
    x = torch.randn(1, 48, 6, generator=torch.Generator().manual_seed(0))
    small, large = (tokenreduce.plan(x * s, "expedit", keep=12, grid=(6, 8), alone=0) for s in (0.01, 100.0))
    assert torch.allclose(small.share, large.share, atol=1e-4) and torch.allclose(small.undo, large.undo, atol=1e-4)
    softer = tokenreduce.plan(x, "expedit", keep=12, grid=(6, 8), alone=0, sharpness=8)
    spread = [float(token_map.share.amax(1).mean()) for token_map in (softer, small)]
    assert 0.8 < spread[0] < spread[1] < 0.99, "sharp, as it should be, and not hard"


@pytest.mark.parametrize(("options", "cells"), [({"alone": 0}, 12), ({}, 6)])
def test_tokens_kept_alone_are_in_no_cluster_and_come_back_exactly(options: dict, cells: int) -> None:
    x = torch.randn(2, 48, 6, generator=torch.Generator().manual_seed(0))
    token_map = tokenreduce.plan(x, "expedit", keep=14, grid=(6, 8), **options)
    assert token_map.grid is None
    alone = token_map.rep[:, cells:]
    y = token_map.apply(x)
    for image, kept, output, restored in zip(x, alone, y, token_map.restore(y), strict=True):
        assert torch.equal(output[cells:], image[kept]) and torch.equal(restored[kept], image[kept])
    outliers = x.scatter_add(1, alone[..., None].expand(-1, -1, 6), torch.full((*alone.shape, 6), 100.0))
    assert TokenMap(14, share=token_map.share).apply(outliers)[:, :cells].abs().max() < 5


@pytest.mark.parametrize("length", [1.0, 1.3, 40.0])
@pytest.mark.parametrize(("change", "first"), [(1e-5, True), (0.01, False)])
def test_of_tokens_as_far_from_their_mean_but_for_rounding_the_first_counts(length, change, first) -> None:
    x = length * torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]]])
    nearer, farther = x.clone(), x.clone()
    nearer[0, 2], farther[0, 2] = x[0, 2] * (1 - change), x[0, 2] * (1 + change)
    one = tokenreduce.plan(nearer, "expedit", keep=1, grid=(2, 2))
    assert one.rep.tolist() == [[0 if first else 2]]
    two = tokenreduce.plan(farther, "expedit", keep=2, grid=(2, 2))
    assert two.rep[0, 1] == (0 if first else 2)


@given(st.integers(1, 14), st.integers(1, 14), st.data())
def test_the_coarse_grid_is_the_largest_of_the_aspect_ratio(height, width, data) -> None:
    count = data.draw(st.integers(1, height * width))
    h, w = coarse_grid(height, width, count)
    every = [(a, b) for a in range(1, height + 1) for b in range(1, width + 1)]
    fits = [(a, b) for a, b in every if a * b <= count and abs(a * width - b * height) <= max(height, width)]
    assert (h, w) in fits and h * w == max(a * b for a, b in fits)
    assert count - h * w <= max(h, w), "few tokens are left over"


def test_published_grids() -> None:
    assert [coarse_grid(40, 40, n) for n in (784, 400)] == [(28, 28), (20, 20)]
    assert coarse_grid(48, 48, 1024) == (32, 32) and coarse_grid(30, 40, 300) == (15, 20)


@pytest.mark.parametrize(("layer", "side", "published"), [(11, 23, 275.8), (5, 23, 228.5), (7, 16, 179.0)])
def test_published_counts_of_vit_large_at_512(layer, side, published) -> None:
    pytest.importorskip("timm", "1.0.28")  # timm 1.0.20 reads numbers while it makes a model, which "meta" has none of
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch16_224", img_size=512).eval()
    tokenreduce.patch(model, "expedit", schedule=tokenreduce.Schedule.keep({layer: side * side}), alone=0)
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 512, 512, device="meta"))
    assert counted.uncounted == {}
    assert counted.total / 1e9 == pytest.approx(published, rel=0.03)


def test_it_reduces_once_and_needs_the_whole_grid() -> None:
    model, x = fresh_model(BY_NAME["timm_vit_qk_norm"]), BY_NAME["timm_vit_qk_norm"].images()
    before = model(x)
    with pytest.raises(ValueError, match=r"one layer only, but this budget reduces in layers \[0, 2\]"):
        tokenreduce.patch(model, "expedit", schedule=tokenreduce.Schedule.keep({0: 0.5, 2: 0.5}))
    assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="expedit needs grid"):
        tokenreduce.plan(torch.randn(1, 12, 4), "expedit", keep=6)
    with pytest.raises(ValueError, match=r"12 in a grid \(4, 4\)"):
        tokenreduce.plan(torch.randn(1, 12, 4), "expedit", keep=6, grid=(4, 4))


@pytest.mark.parametrize("size", [(32, 24), (24, 24), (24, 40), (40, 48)])
def test_budgets_for_images_of_other_sizes(size) -> None:
    model = fresh_model(BY_NAME["timm_vit_dynamic_size"])
    tokenreduce.patch(model, "expedit", flops=0.7)
    assert model(torch.randn(1, 3, *size)).isfinite().all()
    assert tokenreduce.report(model).flops_share == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inverse_temperature": -1}, "inverse_temperature is -1; it must be finite and at least 0"),
        ({"inverse_temperature": math.inf}, "inverse_temperature is inf"),
        ({"inverse_temperature": "warm"}, "inverse_temperature is 'warm'; it must be a number or None"),
        ({"inverse_temperature": True}, "inverse_temperature is True"),
        ({"window": 4}, "window is 4; it must be odd"),
        ({"window": -1}, "window is -1; it must be 1 or more"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"neighbours": 0}, "neighbours is 0; it must be 1 or more"),
        ({"alone": 1.5}, r"alone is 1.5; it must lie in \[0, 1\]"),
        ({"sharpness": 0}, "sharpness is 0; it must"),
        ({"alone": "few"}, "alone is 'few'; it must be a number"),
    ],
)
def test_options_are_checked(options, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tokenreduce.plan(torch.randn(1, 12, 4), "expedit", keep=6, grid=(3, 4), **options)
