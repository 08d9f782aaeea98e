"""`selective_scan` against its closed form, one term for each pair of tokens; as an operator, by doubling, with
gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scans import OPTIONS, leaves, scan_inputs
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from tokenreduce import count_flops
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.selective_scan import scan_by_doubling, scan_loop, scan_operator, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "decay_dt", "dt_bias", "order", "scale", "softplus", "reverse")


def named(options: dict[str, Any]) -> str:
    return "-".join(name for name, on in options.items() if on) or "plain"


all_options = pytest.mark.parametrize("options", OPTIONS, ids=named)
some_options = pytest.mark.parametrize("options", OPTIONS[::5], ids=named)  # each option with and without each other


def closed_form(given: list[Any]) -> Tensor:
    """`y_t = sum over s up to t of C_t exp(A (decay_{s+1} + ... + decay_t)) B_s dt_s x_s`, in fp64, image by image."""
    x, dt, A, B, C, D, z, decay, bias, order, scale, softplus, reverse = (
        t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in given
    )
    step = dt if bias is None else dt + bias
    step = F.softplus(step) if softplus else step
    step = step if scale is None else step * scale[..., None]
    decay = step if decay is None else decay
    out = torch.zeros_like(x)
    for image in range(x.shape[0]):
        walk = range(x.shape[1]) if order is None else order[image].tolist()
        walk = [*walk][::-1] if reverse else [*walk]
        for t, row in enumerate(walk):
            for s in range(t + 1):
                between = sum((decay[image, walk[u]] for u in range(s + 1, t + 1)), torch.zeros_like(x[0, 0]))
                kept = torch.exp(between[:, None] * A) * B[image, walk[s]] * C[image, row]
                out[image, row] += kept.sum(1) * step[image, walk[s]] * x[image, walk[s]]
    out = out if D is None else out + D * x
    return out if z is None else out * F.silu(z)


def call(given: list[Any]) -> Tensor:
    """`selective_scan` as models call it."""
    return selective_scan(*given[:8], **dict(zip(NAMES[8:], given[8:], strict=True)))


def by_reference(given: list[Any]) -> Tensor:
    with dispatch.using("reference"):
        return call(given)


WAYS = {
    "call": call,
    "reference": by_reference,
    "loop": lambda given: scan_loop(*given),
    "doubling": lambda given: scan_by_doubling(*given),
    "operator": lambda given: scan_operator(*given),
    "vmap": lambda given: call(given) if given[9] is not None else each_image(given),
}


def each_image(given: list[Any]) -> Tensor:
    rows = [0 if name in ("x", "dt", "B", "C", "z", "decay_dt", "scale") else None for name in NAMES]
    axes = tuple(axis if t is not None else None for axis, t in zip(rows, given, strict=True))

    def one(*inputs: Any) -> Tensor:
        return call([t[None] if axis == 0 else t for axis, t in zip(axes, inputs, strict=True)])[0]

    def mapped(scale: Any, *tensors: Any) -> Tensor:
        return one(*tensors, None, scale, *given[11:])

    return vmap(mapped, (axes[10], *axes[:9]))(given[10], *given[:9])


@all_options
@pytest.mark.parametrize("way", WAYS)
def test_is_the_closed_form(options: dict[str, Any], way: str) -> None:
    given = scan_inputs(2, 6, 3, 2, dtype=torch.float64, **options)
    expected = closed_form(given)
    torch.testing.assert_close(WAYS[way](given), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8, 9])
def test_lengths(length: int) -> None:
    for reverse in (False, True):
        given = scan_inputs(2, length, 3, 2, dtype=torch.float64, reverse=reverse)
        for way in WAYS.values():
            torch.testing.assert_close(way(given), closed_form(given), rtol=0, atol=1e-10)


@some_options
def test_compiles_whole(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    given = scan_inputs(2, 6, 3, 2, dtype=torch.float64, **options)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(given)
    torch.testing.assert_close(found, closed_form(given), rtol=0, atol=1e-10)


@some_options
def test_gradients(options: dict[str, Any]) -> None:
    """Those of numbers, for the call and the operator; a second derivative is nobody's need."""
    given = leaves(scan_inputs(2, 3, 2, 2, dtype=torch.float64, **options))
    wanted = [t for t in given[:9] if t is not None]

    def function(scan: Any) -> Any:
        def of(*tensors: Tensor) -> Tensor:
            found = iter(tensors)
            return scan([None if t is None else next(found) for t in given[:9]] + given[9:])

        return of

    for way in (call, by_reference, WAYS["operator"]):
        assert torch.autograd.gradcheck(function(way), wanted)


def test_an_input_without_gradient_gets_none() -> None:
    given = leaves(scan_inputs(2, 4, 3, 2))
    given[1] = given[1].detach()
    call(given).sum().backward()
    assert given[1].grad is None and given[0].grad is not None


@pytest.mark.parametrize("options", [{"order": True, "decay": True}, {"gate": False, "skip": False}], ids=str)
def test_the_operator_is_one(options: dict[str, Any]) -> None:
    given = leaves(scan_inputs(2, 5, 3, 2, **options))
    torch.library.opcheck(torch.ops.tokenreduce.selective_scan.default, tuple(given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["call", "reference", "doubling", "operator"])
def test_states_of_half_precision_are_fp32(dtype: torch.dtype, way: str) -> None:
    """Only the output is rounded: states in half precision would be wrong by more than one step of it."""
    given = scan_inputs(2, 60, 4, 4, dtype=dtype)
    found, exact = WAYS[way](given), closed_form(given)
    assert found.dtype == dtype
    rounding = torch.finfo(dtype).eps * exact.abs() * 0.51 + 2e-5 * exact.abs().max()
    assert ((found.double() - exact).abs() <= rounding).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_a_longer_decay_stands_for_inputs_that_are_gone(dtype: torch.dtype, tolerance: float, reverse: bool) -> None:
    """With the true steps of what is gone the shorter scan is the longer one in which those tokens write nothing."""
    g = torch.Generator().manual_seed(0)
    x, dt, A, B, C, D, z, *_ = scan_inputs(3, 40, 5, 4, softplus=False, dtype=dtype)
    kept = torch.stack([torch.randperm(40, generator=g)[:17].sort().values for _ in range(3)])
    is_kept = torch.zeros(3, 40).scatter(1, kept, 1.0).bool()
    zeroed = x * is_kept[..., None]
    whole = selective_scan(zeroed, dt, A, B, C, D, z, reverse=reverse)
    decay = torch.zeros(3, 17, 5, dtype=dtype)
    for image in range(3):
        waited = torch.zeros(5, dtype=dtype)
        for place in range(40)[::-1] if reverse else range(40):
            waited = waited + dt[image, place]
            if is_kept[image, place]:
                decay[image, int(is_kept[image, :place].sum())] = waited
                waited = torch.zeros(5, dtype=dtype)
    index = kept[..., None]
    short = [t.gather(1, index.expand(-1, -1, t.shape[2])) for t in (x, dt, B, C, z)]
    found = selective_scan(short[0], short[1], A, short[2], short[3], D, short[4], decay, reverse=reverse)
    expected = whole.gather(1, index.expand(-1, -1, 5))
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    plain = selective_scan(short[0], short[1], A, short[2], short[3], D, short[4], reverse=reverse)
    assert (plain - expected).abs().max() > 1e-2 * expected.abs().max(), "the gaps are long enough to be seen"


@pytest.mark.parametrize("way", ["call", "reference"])
def test_is_that_of_transformers(way: str) -> None:
    """Their scan of one direction, values and gradients."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    if not hasattr(mamba, "mamba_selective_scan"):
        pytest.skip("this transformers has the scan inside its mixer")
    ours, theirs = (leaves(scan_inputs(2, 23, 6, 4, gate=True, skip=True, softplus=True)) for _ in range(2))
    x, dt, A, B, C, D, z, _, bias, *_ = theirs
    flipped = [t.transpose(1, 2) for t in (x, dt, B, C, z)]
    expected = mamba.mamba_selective_scan(
        flipped[0], flipped[1], A, flipped[2], flipped[3], D, flipped[4], delta_bias=bias, delta_softplus=True
    ).transpose(1, 2)
    found = WAYS[way](ours)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(grad), expected.backward(grad)
    for name, one, other in zip(NAMES, ours, theirs, strict=True):
        if isinstance(one, Tensor):
            near = 1e-5 * float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=near, msg=name)


def test_multiply_adds_are_four_for_each_state_and_token() -> None:
    given = scan_inputs(2, 7, 5, 3)
    counted = count_flops(lambda: call(given), ())
    assert counted.total == 4 * 2 * 7 * 5 * 3 and not counted.uncounted
