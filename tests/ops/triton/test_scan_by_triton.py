"""`selective_scan` of Triton and its gradients are those of the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from scans import OPTIONS, leaves, scan_inputs

from tokenreduce.ops.selective_scan import scan_loop
from tokenreduce.ops.triton.scan import selective_scan, selective_scan_backward

SHAPES = [(2, 7, 5, 3), (1, 1, 40, 16), (3, 20, 33, 8)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.mark.interpreted
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(name for name, on in o.items() if on) or "plain")
def test_options(options: dict[str, Any]) -> None:
    compare((2, 7, 5, 3), torch.float64, options)


@pytest.mark.interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_shapes_and_types(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    compare(shape, dtype, {})


def compare(shape: tuple[int, int, int, int], dtype: torch.dtype, options: dict[str, Any]) -> None:
    given = scan_inputs(*shape, **options, dtype=dtype)
    exact = leaves([t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given])
    expected = scan_loop(*exact)
    found = selective_scan(*given)
    assert found.dtype == dtype and found.is_contiguous()
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * float(expected.abs().max())}
    torch.testing.assert_close(found.double(), expected, **near)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    wanted = torch.autograd.grad(expected, [t for t in exact[:9] if t is not None], grad.double())
    gradients = selective_scan_backward(grad, *given)
    assert [g.numel() == 0 for g in gradients] == [t is None for t in given[:9]]
    for one, other in zip((g for g in gradients if g.numel()), wanted, strict=True):
        near["atol"] = TOLERANCE[dtype] * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, **near)
