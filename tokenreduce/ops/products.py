"""Merging on a GPU as products with one-hot matrices, and ranking by counting: few launches, and sums in a fixed order.

What PyTorch has for adding rows by an index takes 13 launches there, or atomics in any order once it is compiled; its
sorts take 4. A product reads all tokens for every output, so that a row that is not finite makes all rows of its image
NaN, as the next attention would.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tokenreduce.ops.modes import function_transform
from tokenreduce.ops.native.dispatch import choose

FEW = 512  # tokens up to which launches cost more than products of all tokens
EXACT = (torch.float16, torch.bfloat16)  # whose values and mean of equal values products keep, also in TF32


class _Thread(threading.local):
    def __init__(self) -> None:
        self.by_index = False


_thread = _Thread()


@contextmanager
def by_index() -> Iterator[None]:
    """In this thread everything runs as on the CPU, so that what is counted does not depend on the device."""
    before, _thread.by_index = _thread.by_index, True
    try:
        yield
    finally:
        _thread.by_index = before


def is_gpu(x: Tensor) -> bool:
    """Whether `x` is where operators are launched; fake tensors say so too."""
    return x.device.type not in ("cpu", "meta")


def on_gpu(x: Tensor) -> bool:
    """Whether launches count for `x`, and the order of sums, which adding by an index does not keep there."""
    return is_gpu(x) and not _thread.by_index


def suits(x: Tensor, tokens: int) -> bool:
    """Whether matrices of `tokens` times `tokens` are worth it on the device of `x`, where no compiled kernel runs."""
    if tokens > FEW or not on_gpu(x) or function_transform() is not None:
        return False
    return choose("merge_apply", x) is None


def keeps(x: Tensor) -> bool:
    """Whether a product with a one-hot matrix leaves the rows of `x` as they are, to the last bit."""
    return x.dtype in EXACT


def one_hot(index: Tensor, count: int, values: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(B, K, count)`: `values (B, K)`, or 1, at `index (B, K)` and 0 elsewhere."""
    zeros = torch.zeros(*index.shape, count, dtype=dtype, device=index.device)
    # In a function transform, zeros that are the same for all cannot take what differs in place.
    scatter = zeros.scatter if function_transform() is not None else zeros.scatter_
    return scatter(2, index[..., None], 1.0 if values is None else values[..., None])


def means(image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The means `(B, M, C)` in fp32 of `image (B, N, C)` by `weights (B, N, M)`, and the sums of weights `(B, M)`; 0
    where no weight is."""
    total = weights.sum(1)
    return (weights.transpose(1, 2) @ image.float()) / total.clamp_min(1e-12)[..., None], total


def ranks(score: Tensor) -> Tensor:
    """`(B, K)`: the place of each of `score (B, K)`, the highest first, and the lowest index first among equals."""
    others, own = score[:, None, :], score[:, :, None]
    return ((others > own) | (others >= own).tril(-1)).sum(-1)
