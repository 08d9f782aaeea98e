"""Rows of batched tensors: taking and adding them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.ops import products
from tokenreduce.ops.constants import counting
from tokenreduce.ops.modes import function_transform
from tokenreduce.ops.tracing import exporting


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index (B, K)` of `x (B, N, C)`."""
    batch, n, width = x.shape
    if products.on_gpu(x) or exporting():  # the size of a view would fix an example of one image in the program
        return x.gather(1, index[..., None].expand(-1, -1, width))
    # One flat index_select copies whole rows; gather with an expanded index takes several times longer on CPU.
    rows = x.reshape(batch * n, width).index_select(0, flat_index(index, n))
    return rows.view(batch, index.shape[1], width)


def between(x: Tensor, prefix: int, suffix: int) -> Tensor:
    """The image tokens of `x (B, prefix + N + suffix, C)`: a view of it, except in an export."""
    image = x[:, prefix : x.shape[1] - suffix]
    # Products ask a view for its layout, whose answer fixes an example of one image in the program.
    return image.clone(memory_format=torch.contiguous_format) if exporting() else image


def scatter_rows(out: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """`out (B, M, C)`, contiguous and not to be used again, plus `rows (B, K, C)` at `index (B, K)`, always in the same
    order, compiled or not."""
    batch, n, width = out.shape
    if products.on_gpu(out):
        return torch.baddbmm(out, products.one_hot(index, n, dtype=rows.dtype).transpose(1, 2), rows)
    if function_transform() is not None:
        return out.scatter_add(1, index[..., None].expand(-1, -1, width), rows)
    flat, target, added = flat_index(index, n), out.view(batch * n, width), rows.reshape(-1, width)
    target.scatter_add_(0, flat[:, None].expand(-1, width), added)
    return out


def scatter_sums(out: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`out (B, M)`, not to be used again, plus `values (B, K)` at `index (B, K)`, in the same order as well."""
    if products.on_gpu(out):
        return out + products.one_hot(index, out.shape[1], values, values.dtype).sum(1)
    return out.scatter_add_(1, index, values) if function_transform() is None else out.scatter_add(1, index, values)


def summing(x: Tensor) -> Tensor:
    """`x` in the type in which sums of it run: fp32 for half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def flat_index(index: Tensor, n: int) -> Tensor:
    """`index (B, K)` into rows of n as an index `(B K,)` into all rows."""
    return (index + counting(index.shape[0], index.device, n)[:, None]).flatten()


def with_protected(index: Tensor, prefix: int, suffix_start: int, suffix: int) -> Tensor:
    """Image-token indices `(B, K)` moved past the prefix, with the protected tokens' own indices around them."""
    if not prefix and not suffix:
        return index
    batch = index.shape[0]
    parts = [counting(prefix, index.device).expand(batch, -1), index + prefix]
    if suffix:
        parts.append((counting(suffix, index.device) + suffix_start).expand(batch, -1))
    return torch.cat(parts, 1)
