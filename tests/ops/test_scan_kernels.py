"""The compiled selective scan and its gradients against the loop in double, and what must not change a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_calls import DTYPES, STRIDES, kernel, strided
from scans import leaves, scan_inputs
from torch import Tensor

from tokenreduce.ops.native import dispatch
from tokenreduce.ops.selective_scan import scan_loop, selective_scan

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")

# Of the greatest output: rounding of the arithmetic, or of what is returned.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 6e-4, torch.bfloat16: 5e-3}
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "decay_dt", "dt_bias")


def close(found: Tensor, expected: Tensor, tolerance: float, name: str = "", least: float = 1e-30) -> None:
    """Within `tolerance` of the greatest number, or of `least` if that is less."""
    assert found.shape == expected.shape and found.is_contiguous(), name
    if expected.numel():
        error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=least)
        assert error <= tolerance, f"{name}: {error:.3g}"


def in_double(given: list[Any]) -> list[Any]:
    return [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given]


def by_loop(given: list[Any], grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of the loop, in double."""
    tensors = leaves(in_double(given))
    out = scan_loop(*tensors)
    names = [name for name, t in zip(NAMES, tensors, strict=False) if t is not None]
    wanted = [t for t in tensors[: len(NAMES)] if t is not None]
    found = torch.autograd.grad(out, wanted, grad.double(), materialize_grads=True)
    return out.detach(), dict(zip(names, found, strict=True))


def agrees(given: list[Any], seed: int = 0) -> None:
    x = given[0]
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    out, gradients = by_loop(given, grad)
    found = kernel("selective_scan")(*given)
    assert found.dtype == x.dtype
    close(found, out, TOLERANCE[x.dtype], "output")
    each = [by_loop(images(given, one), grad[one])[1] for one in (slice(i, i + 1) for i in range(len(x)))]
    for name, tensor, back in zip(NAMES, given, kernel("selective_scan_backward")(grad, *given), strict=False):
        if tensor is None:
            assert back.shape == (0,)
        else:
            assert back.dtype == tensor.dtype
            # Numbers of about 1 are summed, and what they come to in each image; both may cancel.
            summed = max([1.0, *(float(one[name].abs().max()) for one in each if one[name].numel())])
            close(back, gradients[name], 3 * TOLERANCE[back.dtype], name, least=summed)


@st.composite
def scans(draw: Any) -> list[Any]:
    batch, length, width = draw(st.integers(0, 3)), draw(st.integers(0, 40)), draw(st.sampled_from((1, 7, 16, 17, 150)))
    flags = {name: draw(st.booleans()) for name in ("gate", "decay", "order", "softplus", "skip", "reverse", "scale")}
    states, dtype, seed = (
        draw(st.sampled_from((1, 3, 8, 16, 20))),
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 99)),
    )
    return images(scan_inputs(3, length, width, states, dtype=dtype, seed=seed, **flags), slice(batch))


def images(given: list[Any], which: slice) -> list[Any]:
    """The inputs of some images."""
    rows = [0, 1, 3, 4, 6, 7, 9, 10]
    return [t[which] if i in rows and t is not None else t for i, t in enumerate(given)]


@settings(deadline=None, max_examples=150)
@given(scans())
def test_scan_and_gradients_are_the_loop(given: list[Any]) -> None:
    agrees(given)


@pytest.mark.parametrize("states", [8, 16])
@pytest.mark.parametrize("reverse", [False, True])
def test_at_the_size_of_a_model(states: int, reverse: bool) -> None:
    agrees(scan_inputs(2, 197, 384, states, decay=reverse, order=True, reverse=reverse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_do_not_grow_where_little_is_forgotten(dtype: torch.dtype) -> None:
    given = scan_inputs(1, 2000, 5, 16, softplus=False, dtype=dtype)
    given[1], given[2] = given[1] * 0.02, given[2] * 0.02
    agrees(given)


def precise(found: Tensor, expected: Tensor, exponent: Tensor) -> None:
    """Within three units in the last place, and that of the exponent; below the smallest normal number, that."""
    allowed = (2e-7 + 1e-7 * exponent.abs()) * expected + 2e-38
    assert ((found.double() - expected).abs() <= allowed).all()


def test_time_steps_and_decays_are_precise_wherever_they_lie() -> None:
    """The output is the time step where one token is written and read by ones, and the decay where it is read later."""
    raw = torch.linspace(-90, 90, 3001)
    one, row, x = torch.ones(1, 1, 1), torch.ones(1, 2, 1), torch.ones(1, 1, 3001)
    step = kernel("selective_scan")(
        x, raw[None, None], -torch.ones(3001, 1), one, one, *[None] * 3, 0 * raw, None, None, True, False
    )
    precise(step[0, 0], torch.nn.functional.softplus(raw.double()), raw)
    pulse, wait = torch.stack([x[0], 0 * x[0]], 1), torch.stack([raw.abs(), raw.abs()])[None]
    decayed = kernel("selective_scan")(
        pulse, pulse, -torch.ones(3001, 1), row, row, None, None, wait, None, None, None, False, False
    )
    precise(decayed[0, 1], (-raw.abs().double()).exp(), raw)


@settings(deadline=None, max_examples=40)
@given(scans(), st.lists(STRIDES, min_size=5, max_size=5))
def test_strides_change_nothing(given: list[Any], ways: list[str]) -> None:
    grad, at = torch.randn(given[0].shape).to(given[0].dtype), (0, 1, 3, 6, 7)
    other = list(given)
    other[10] = None if given[10] is None else strided(given[10], "transposed")
    for i, how in zip(at, ways, strict=True):
        other[i] = None if given[i] is None else strided(given[i], how)
    assert torch.equal(kernel("selective_scan")(*other), kernel("selective_scan")(*given))
    backs = [kernel("selective_scan_backward")(strided(grad, ways[0]), *these) for these in (other, given)]
    assert all(map(torch.equal, *backs))


def test_parameters_may_be_strided() -> None:
    given = scan_inputs(2, 9, 20, 3)
    wide = [t if t is None else torch.stack([t, t], -1)[..., 0] for t in given[:9]]
    assert torch.equal(kernel("selective_scan")(*wide, *given[9:]), kernel("selective_scan")(*given))


@pytest.mark.parametrize("states", [5, 16])
def test_threads_and_the_rest_of_a_batch_change_no_bit(states: int) -> None:
    given, grad = scan_inputs(5, 60, 200, states, decay=True, order=True), torch.randn(5, 60, 200)
    runs, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            runs.append((kernel("selective_scan")(*given), *kernel("selective_scan_backward")(grad, *given)))
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, runs[0], runs[1])) and all(map(torch.equal, runs[0], runs[2]))
    third = images(given, slice(3, 4))
    alone = (kernel("selective_scan")(*third), *kernel("selective_scan_backward")(grad[3:4], *third))
    assert all(torch.equal(alone[i], runs[0][i][3:4]) for i in (0, 1, 2, 4, 5, 7, 8))


def test_backwards_is_forwards_over_flipped_rows() -> None:
    given = scan_inputs(2, 30, 40, 8, decay=True)
    flipped = [t.flip(1) if isinstance(t, Tensor) and t.dim() == 3 else t for t in given]
    expected = kernel("selective_scan")(*flipped).flip(1)
    assert torch.equal(kernel("selective_scan")(*given[:12], True), expected)
    order = torch.arange(29, -1, -1).expand(2, -1)
    assert torch.equal(kernel("selective_scan")(*given[:9], order, None, True, False), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_decays_that_are_summed_over_gaps_are_a_scan_whose_removed_tokens_write_nothing(
    dtype: torch.dtype, tolerance: float
) -> None:
    given = scan_inputs(2, 80, 40, 16, softplus=False, gate=False, skip=False, dtype=dtype)
    kept = torch.rand(80, generator=torch.Generator().manual_seed(1)) < 0.5
    whole = kernel("selective_scan")(given[0] * kept[:, None], *given[1:])[:, kept]
    sums = torch.cat([torch.zeros(2, 1, 40, dtype=dtype), given[1].cumsum(1)[:, kept]], 1).diff(dim=1)
    short = [t[:, kept] if isinstance(t, Tensor) and t.dim() == 3 else t for t in given]
    short[7] = sums
    close(kernel("selective_scan")(*short), whole.double(), tolerance)


def test_odd_values_stay_in_their_channel_and_an_endless_wait_forgets() -> None:
    given = scan_inputs(1, 12, 20, 3, decay=True, softplus=False)
    clean = kernel("selective_scan")(*given)
    for place, value in ((0, torch.nan), (1, torch.nan), (7, torch.nan), (0, torch.inf), (7, torch.inf)):
        odd = [t.clone() if isinstance(t, Tensor) else t for t in given]
        odd[place][0, 5, 3] = value
        found, expected = kernel("selective_scan")(*odd), scan_loop(*odd)
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
        assert found.isfinite().all() == (place == 7 and value == torch.inf)
        found[..., 3] = clean[..., 3]
        assert torch.equal(found, clean)


def test_half_precision_rounds_only_what_it_returns() -> None:
    given = scan_inputs(2, 50, 24, 8, dtype=torch.bfloat16)
    wide = [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given]
    assert torch.equal(kernel("selective_scan")(*given), kernel("selective_scan")(*wide).bfloat16())


def test_gradients_reach_the_operator() -> None:
    given = leaves(scan_inputs(2, 5, 3, 2, decay=True, order=True, scale=True, dtype=torch.float64))

    def scan(*tensors: Tensor) -> Tensor:
        x, dt, A, B, C, D, z, decay_dt, bias = tensors
        return selective_scan(
            x, dt, A, B, C, D, z, decay_dt, dt_bias=bias, softplus=True, order=given[9], scale=given[10]
        )

    with dispatch.using("cpu"):
        assert torch.autograd.gradcheck(scan, given[:9])


BAD = [
    (9, torch.zeros(2, 6, dtype=torch.long), "order holds 0 twice"),
    (9, torch.full((2, 6), 6), r"order holds 6; its entries must lie in \[0, 6\)"),
    (9, torch.zeros(2, 6), "order must be int64"),
    (10, torch.ones(2, 5), r"scale has shape \(2, 5\); it must be \(2, 6\)"),
    (10, torch.ones(2, 6, dtype=torch.long), "scale must be float32 or of the type of x"),
    (1, torch.zeros(2, 6, 5), r"dt has shape \(2, 6, 5\); it must be \(2, 6, 4\)"),
    (3, torch.zeros(2, 6, 2), r"B has shape \(2, 6, 2\); it must be \(2, 6, 3\)"),
    (2, torch.zeros(4), r"A has shape \(4\)"),
    (4, torch.zeros(2, 6, 3).double(), "C must be float32 or of the type of x"),
    (0, torch.zeros(2, 6, 4, dtype=torch.long), "x must be float32, float64, float16 or bfloat16"),
]


@pytest.mark.parametrize(("place", "tensor", "words"), BAD)
def test_bad_tensors_are_refused(place: int, tensor: Tensor, words: str) -> None:
    given = scan_inputs(2, 6, 4, 3, order=True)
    given[place] = tensor
    for call in (lambda: kernel("selective_scan")(*given), lambda: kernel("selective_scan_backward")(given[6], *given)):
        with pytest.raises(RuntimeError, match=words):
            call()
