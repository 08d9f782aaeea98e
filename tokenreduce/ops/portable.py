"""Programs of `torch.export` for runtimes that know few operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError


def portable(program: Any) -> Any:
    """A program of `torch.export` with simpler operators where converters know none for what this one uses.

    Values are compared pair by pair where the program sorts them, or looks for the least of a group: the result is the
    same, equal values included, but N values take N squared comparisons. Sorting is what the converters of ExecuTorch
    and Core ML refuse, minima of groups what OpenVINO's does.
    """
    return program.run_decompositions(dict(SIMPLER))


def order(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """The indices that sort `x` along `dim`, the lowest first among equals."""
    x = x.movedim(dim, -1)
    index = torch.arange(x.shape[-1], device=x.device)
    mine, other = x[..., None], x[..., None, :]
    first = torch.logical_and(other == mine, index < index[:, None])  # among equals; Core ML knows no `&` here
    place = torch.logical_or(other > mine if descending else other < mine, first).sum(-1)
    there = place[..., None, :] == index[:, None]
    return (there.long() * index).sum(-1).movedim(-1, dim)  # Core ML knows no `where` with a number


def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    return order(x, dim, descending)


def argsort_stable(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    return order(x, dim, descending)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    places = order(x, dim, descending)
    return x.gather(dim, places), places


def sort_stable(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return sort(x, dim, descending)


def scatter_reduce(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool = True) -> Tensor:
    """Minima and maxima only; methods of this library use no other."""
    if reduce not in ("amin", "amax") or not include_self:
        raise InvalidValueError(
            f"portable() has no simpler operators for scatter_reduce({reduce!r}, include_self={include_self}); "
            "minima and maxima with include_self=True have some"
        )
    x, index, src = (tensor.movedim(dim, -1) for tensor in (x, index, src))
    groups = torch.arange(x.shape[-1], device=x.device)[:, None]
    values = torch.where(index[..., None, :] == groups, src[..., None, :], x[..., None])
    return (values.amin(-1) if reduce == "amin" else values.amax(-1)).movedim(-1, dim)


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    x = x.movedim((dim1, dim2), (-2, -1))
    x = x[..., offset:] if offset > 0 else x[..., -offset:, :]
    length = min(x.shape[-2:])
    return x[..., :length, :length].flatten(-2)[..., :: length + 1]


def new_ones(x: Tensor, size: list[int], **options: Any) -> Tensor:
    return new_full(x, size, 1, **options)


def new_zeros(x: Tensor, size: list[int], **options: Any) -> Tensor:
    return new_full(x, size, 0, **options)


def new_full(x: Tensor, size: list[int], value: float, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return torch.full(size, value, dtype=dtype or x.dtype, device=x.device)


# Core ML does not look at the type that these are given.
def zeros(size: list[int], dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
    return torch.full(size, 0, dtype=dtype or torch.get_default_dtype(), device=device)


def ones(size: list[int], dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Tensor:
    return torch.full(size, 1, dtype=dtype or torch.get_default_dtype(), device=device)


def zeros_like(x: Tensor, **options: Any) -> Tensor:
    return new_full(x, [*x.shape], 0, **options)


def ones_like(x: Tensor, **options: Any) -> Tensor:
    return new_full(x, [*x.shape], 1, **options)


def full_like(x: Tensor, value: float, **options: Any) -> Tensor:
    return new_full(x, [*x.shape], value, **options)


def number(value: float, x: Tensor) -> Tensor:
    """A tensor of the type that `x` and the number have together."""
    return torch.full([], value, dtype=torch.result_type(x, value), device=x.device)


def where_self(condition: Tensor, value: float, x: Tensor) -> Tensor:
    return torch.where(condition, number(value, x), x)


def where_other(condition: Tensor, x: Tensor, value: float) -> Tensor:
    return torch.where(condition, x, number(value, x))


def clamp_min(x: Tensor, least: float) -> Tensor:
    return torch.maximum(x, number(least, x))


def gather(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    return x.long().gather(dim, index) > 0 if x.dtype == torch.bool else NotImplemented


def total(x: Tensor, dim: list[int] | None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    return x.long().sum(dim, keepdim, dtype=dtype) if x.dtype == torch.bool else NotImplemented


def bitwise_not(x: Tensor) -> Tensor:
    return torch.logical_not(x) if x.dtype == torch.bool else NotImplemented


def isinf(x: Tensor) -> Tensor:
    return x.abs() == torch.inf


def isneginf(x: Tensor) -> Tensor:
    return x == -torch.inf


def itself(x: Tensor) -> Tensor:
    return x


def both(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y) if x.dtype == torch.bool else torch.bitwise_and(x, y)


def either(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y) if x.dtype == torch.bool else torch.bitwise_or(x, y)


aten = torch.ops.aten
SIMPLER = {
    aten.argsort.default: argsort,
    aten.argsort.stable: argsort_stable,
    aten.sort.default: sort,
    aten.sort.stable: sort_stable,
    aten.scatter_reduce.two: scatter_reduce,
    aten.diagonal.default: diagonal,
    aten.__and__.Tensor: both,
    aten.__or__.Tensor: either,
    aten.alias.default: itself,
    aten.new_ones.default: new_ones,
    aten.new_zeros.default: new_zeros,
    aten.new_full.default: new_full,
    aten.zeros.default: zeros,
    aten.ones.default: ones,
    aten.zeros_like.default: zeros_like,
    aten.ones_like.default: ones_like,
    aten.full_like.default: full_like,
    aten.where.ScalarSelf: where_self,
    aten.where.ScalarOther: where_other,
    aten.clamp_min.default: clamp_min,
    aten.gather.default: gather,
    aten.sum.dim_IntList: total,
    aten.bitwise_not.default: bitwise_not,
    aten.isinf.default: isinf,
    aten.isneginf.default: isneginf,
}
