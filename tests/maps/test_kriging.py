"""Kriging of what members of merged tokens have changed by: against loops, where it gives none, and what it costs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kriged import beyond, unit
from torch import Tensor

import tokenreduce
from tokenreduce import TokenMap
from tokenreduce.budget.counting import count_flops
from tokenreduce.maps import kriging as module
from tokenreduce.maps.kriging import NEAREST, inverse, kriging, kriging_work
from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.ops.native import dispatch

# Tokens that enter, outputs, and channels.
SIZES = ((60, 40, 24), (20, 5, 16), (30, 29, 8), (12, 1, 4), (40, 12, 33), (9, 9, 4))


def case(n: int, m: int, width: int, seed: int = 0) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(2, n, generator=g).argsort(1)
    dest = torch.randint(m, (2, n), generator=g).scatter(1, order[:, :m], torch.arange(m).expand(2, -1))
    before = torch.randn(2, n, width, generator=g)
    token_map = TokenMap(m, dest=dest)
    after = token_map.apply(before)
    now = after + torch.sin(3 * after) + torch.randn(2, 1, width, generator=g)
    return SimpleNamespace(now=now, after=after, before=before, dest=dest, map=token_map)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_loops(size: tuple[int, int, int]) -> None:
    given = case(*size)
    found = kriging(given.now, given.after, given.before, given.dest)
    expected = beyond(given.now, given.after, given.before, given.dest)
    assert size[0] == size[1] or size[1] == 1 or expected.abs().max() > 0.1
    assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_kernel_is_that_of_loops(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    if dispatch.load():
        pytest.skip("no compiler")
    prefix, suffix = 2, 1
    given = case(*size)
    edges = torch.randn(3, 2, prefix + suffix, size[2])

    def whole(edge: Tensor, x: Tensor) -> Tensor:
        # Every second channel of a wider tensor's rows: rows lie apart.
        rows = torch.cat([edge[:, :prefix], x, edge[:, prefix:]], 1).to(dtype)
        return torch.cat([rows, rows], 2)[..., : size[2]]

    now, after, before = (whole(*pair) for pair in zip(edges, (given.now, given.after, given.before), strict=True))
    arguments = (now, [given.map], [Around(before, after)], prefix, suffix)
    assert not dispatch.why_not("krige_apply", now)
    found, delta = (restore_tokens(mode, *arguments) for mode in ("kriging", "delta"))
    images = [rows[:, prefix:-suffix] for rows in (now, after, before)]
    expected = beyond(*images, given.dest)
    assert found.dtype == dtype and torch.equal(found[:, :prefix], delta[:, :prefix])
    assert torch.equal(found[:, -suffix:], delta[:, -suffix:])
    tolerance = 1e-4 if dtype.itemsize > 2 else 0.06  # the reference rounds sums to half precision
    assert torch.allclose((found - delta)[:, prefix:-suffix].double(), expected, atol=tolerance)


def test_outputs_that_hold_padding_are_not_read() -> None:
    given = case(50, 30, 16)
    empty = torch.zeros(2, 30, dtype=torch.bool)
    empty[0, ::3] = empty[1, 5:28] = True
    expected = beyond(given.now, given.after, given.before, given.dest, empty)
    real = ~empty.gather(1, given.dest)
    found = kriging(given.now, given.after, given.before, given.dest, empty)
    assert torch.allclose(found.double()[real], expected[real], atol=1e-4)
    given.now[empty], given.after[empty] = 1e3, -1e3
    assert torch.allclose(kriging(given.now, given.after, given.before, given.dest, empty)[real], found[real])
    around = [Around(given.before, given.after, empty)]
    restored = restore_tokens("kriging", given.now, [given.map], around, 0, 0)
    delta = restore_tokens("delta", given.now, [given.map], around, 0, 0)
    assert torch.allclose((restored - delta).double()[real], expected[real], atol=1e-4)


def test_a_change_that_is_smooth_is_foretold() -> None:
    """Of tokens on a curve, whose change follows from where they are, nearly all of it comes back."""
    angle = torch.linspace(0, 3, 64)
    before = torch.stack([angle.cos(), angle.sin(), torch.zeros(64)], 1)[None]
    dest = (torch.arange(64) // 2)[None]
    token_map = TokenMap(32, dest=dest)
    after = token_map.apply(before)
    change = lambda x: torch.stack([x[..., 0] * x[..., 1], x[..., 1] ** 2, x[..., 0]], -1)  # noqa: E731
    true = before + change(before)
    found = {
        mode: restore_tokens(mode, after + change(after), [token_map], [Around(before, after)], 0, 0)
        for mode in ("delta", "kriging")
    }
    errors = {mode: (x - true).square().mean().sqrt() for mode, x in found.items()}
    assert errors["kriging"] < 0.1 * errors["delta"]


def test_where_all_change_alike_nothing_is_added() -> None:
    given = case(40, 25, 12)
    alike = given.after + torch.randn(2, 1, 12)
    assert kriging(alike, given.after, given.before, given.dest).abs().max() < 1e-5
    same = given.after[:, :1].expand_as(given.after)  # outputs that do not differ
    assert kriging(same + 1, same, given.before, given.dest).abs().max() < 1e-5


def test_a_member_that_is_its_output_gets_nothing() -> None:
    given = case(40, 25, 12)
    like = given.after.gather(1, given.dest[..., None].expand(-1, -1, 12)) * 3  # directions alone count
    assert kriging(given.now, given.after, like, given.dest).abs().max() < 1e-4


def test_an_image_does_not_depend_on_others_of_the_batch() -> None:
    given = case(40, 25, 12)
    both = kriging(given.now, given.after, given.before, given.dest)
    given.after[1] = torch.nan
    assert torch.equal(kriging(given.now, given.after, given.before, given.dest)[0], both[0])


@pytest.mark.parametrize("size", SIZES)
def test_its_work_is_what_dispatch_counts(size: tuple[int, int, int]) -> None:
    given = case(*size)
    counted = count_flops(lambda: kriging(given.now[:1], given.after[:1], given.before[:1], given.dest[:1]), ())
    assert counted.total == kriging_work(*size)


def test_inverses_step_by_step_are_inverses(monkeypatch: pytest.MonkeyPatch) -> None:
    points = unit(torch.randn(3, 5, NEAREST, 6, dtype=torch.float64))
    matrix = torch.exp(-torch.cdist(points, points)) + 0.01 * torch.eye(NEAREST)
    expected = inverse(matrix)
    monkeypatch.setattr(module, "to_onnx", lambda: True)
    assert torch.allclose(inverse(matrix), expected, atol=1e-9)
    assert torch.allclose(expected @ matrix, torch.eye(NEAREST, dtype=torch.float64).expand_as(matrix), atol=1e-9)


def test_its_gradients_are_those_of_differences() -> None:
    given = case(10, 6, 3)
    tensors = [t.double().requires_grad_() for t in (given.now, given.after, given.before)]
    assert torch.autograd.gradcheck(lambda *t: kriging(*t, given.dest), tensors)


def test_it_is_the_own_way_of_ward_alone_and_open_to_methods_of_whole_maps() -> None:
    methods = {name: tokenreduce.describe(name) for name in tokenreduce.methods("encoder")}
    ours = [name for name, about in methods.items() if "kriging" in (about["pooling"], about["restoring"])]
    assert ours == ["ward"]
    without = {name for name, about in methods.items() if "kriging" not in about["modes"]}
    assert without == {"expedit", "gtp", "mame", "token_transforming"}  # their maps are many-to-many
