"""Kriging: what each member of a merged token has changed by, predicted from the outputs nearest to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import summing, take
from tokenreduce.ops.tracing import repeat, to_onnx

NEAREST = 16  # outputs that a prediction reads; twice as many gain little more
REACH = 2.0  # the squared length of the kernel, of the mean squared distance between these outputs
RIDGE = 0.01  # on the diagonal of their kernel, so that outputs that are nearly alike may differ in their change
LEAST = 1e-6  # of that squared length, where all outputs are alike


def kriging(now: Tensor, after: Tensor, before: Tensor, dest: Tensor, empty: Tensor | None = None) -> Tensor:
    """What members of outputs have changed by beyond the change of their output, `(B, N, C)`: 0 where they are it.

    The change is taken for a function of a token's direction, known at the outputs: a Gaussian process with the kernel
    `exp(-|u - v|^2 / l)` (kriging, Krige 1951; Rasmussen and Williams 2006, chapter 2) predicts it at each member from
    the `NEAREST` outputs of its own one. Of the prediction the difference to that at the own output is what is given:
    so a member that is like its output, or an image that changes alike everywhere, gets 0.

    Args:
        now, after: the outputs `(B, M, C)` as they are, and as they were when they were made.
        before: the tokens `(B, N, C)` of which they were made by `dest (B, N)`.
        empty: `(B, M)`, True for outputs that hold nothing and are not read.
    """
    n, m = before.shape[1], after.shape[1]
    few, most = min(n - m, m), min(n, n - m + min(n - m, m))  # outputs of several members there may be, and members
    if few == 0:
        return torch.zeros_like(before)
    members = torch.zeros_like(dest[:, :m]).scatter_add(1, dest, torch.ones_like(dest))
    held = members.gather(1, dest)
    outputs, tokens = _largest(members, few), _largest(held, most)
    place = torch.zeros_like(members).scatter(1, outputs, torch.arange(few, device=dest.device).expand_as(outputs))
    place = place.gather(1, dest.gather(1, tokens))  # of the output of each token among `outputs`
    units = F.normalize(summing(after), dim=-1)
    centres = take(units, outputs)
    index = _nearest(centres, units, outputs, empty)
    near = index.shape[2]
    offsets = take(units, index.flatten(1)).unflatten(1, (few, near)) - centres[:, :, None]
    read = None if empty is None else ~empty.gather(1, index.flatten(1)).view(index.shape)
    inverses, at_centre, length = _system(offsets, read)
    theirs = take(offsets.flatten(2), place).unflatten(2, (near, -1))
    own = take(F.normalize(summing(before), dim=-1), tokens) - take(centres, place)
    distance = own.square().sum(-1, keepdim=True) + theirs.square().sum(-1) - 2 * (theirs @ own[..., None])[..., 0]
    kernel = (-distance.clamp_min(0) / take(length, place)).exp()
    if read is not None:
        kernel = kernel * take(read.to(kernel.dtype), place)
    kernel = kernel - take(at_centre, place)
    weights = take(inverses.flatten(2), place).unflatten(2, (near, near)) @ kernel[..., None]
    change = summing(now) - summing(after)
    beyond = take(change, index.flatten(1)).unflatten(1, (few, near)) - take(change, outputs)[:, :, None]
    beyond = take(beyond.flatten(2), place).unflatten(2, (near, -1))
    given = (weights.transpose(2, 3) @ beyond)[:, :, 0]
    given = torch.where(held.gather(1, tokens)[..., None] > 1, given, 0)
    return torch.zeros_like(summing(before)).scatter(1, tokens[..., None].expand_as(given), given)


def kriging_work(n: int, m: int, width: int) -> int:
    """MACs of `kriging` for one image; the inverses, of a few numbers each, are not counted."""
    few, most, near = min(n - m, m), min(n, n - m + min(n - m, m)), min(NEAREST, m)
    return few * (m + near**2) * width + most * near * (2 * width + near)


def _largest(counts: Tensor, few: int) -> Tensor:
    """The places `(B, few)` of the largest `counts (B, N)`, the first of equals first."""
    return stable_order(counts, 1, descending=True)[:, :few]


def _nearest(centres: Tensor, units: Tensor, outputs: Tensor, empty: Tensor | None) -> Tensor:
    """The places `(B, K, near)` of the `units (B, M, C)` nearest to each of `centres (B, K, C)`, itself first."""
    distance = 1 - centres @ units.transpose(1, 2)
    distance = torch.where(distance == distance, distance, torch.inf)
    if empty is not None:
        distance = distance.masked_fill(empty[:, None], torch.inf)
    distance = distance.scatter(2, outputs[..., None], -1.0)
    return stable_order(distance, 2)[:, :, : min(NEAREST, units.shape[1])]


def _system(offsets: Tensor, read: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of outputs at `offsets (B, K, near, C)` from the first of them: the inverse of their kernel `(B, K, near, near)`,
    the kernel with the first one `(B, K, near)`, and its squared length `(B, K, 1)`."""
    products = offsets @ offsets.transpose(2, 3)
    squares = products.diagonal(dim1=2, dim2=3)
    distance = (squares[..., None] + squares[..., None, :] - 2 * products).clamp_min(0)
    if read is None:
        mean = distance.mean((2, 3), keepdim=True)
    else:
        both = (read[..., None] & read[..., None, :]).to(distance.dtype)
        mean = (distance * both).sum((2, 3), keepdim=True) / both.sum((2, 3), keepdim=True).clamp_min(1)
    length = (REACH * mean).clamp_min(LEAST)
    kernel = (-distance / length).exp()
    if read is not None:
        kernel = kernel * both
    ridged = kernel + RIDGE * torch.eye(offsets.shape[2], dtype=kernel.dtype, device=kernel.device)
    return inverse(ridged), kernel[:, :, 0], length[..., 0]


def inverse(matrix: Tensor) -> Tensor:
    """The inverses of symmetric positive definite matrices `(..., n, n)`; for ONNX, which has no operator for it, by
    Gauss-Jordan elimination in one loop of the graph."""
    if not to_onnx():
        return torch.linalg.inv_ex(matrix).inverse
    n = matrix.shape[-1]
    unit = torch.eye(n, dtype=matrix.dtype, device=matrix.device)

    def eliminate(done: Tensor, both: Tensor) -> tuple[Tensor]:
        one = unit.index_select(0, done.reshape(1))
        row, column = one @ both, both[..., :n] @ one.T
        row = row / (row[..., :n] * one).sum(-1, keepdim=True)
        return (both - (column - one.T) * row,)

    return repeat(eliminate, n, torch.cat([matrix, unit.expand_as(matrix)], -1))[0][..., n:]
