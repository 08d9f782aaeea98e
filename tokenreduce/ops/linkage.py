"""Agglomerative clustering: merge the two closest clusters until few enough are left.

Exported programs hold the operator `tokenreduce::agglomerate`: import this module before loading one elsewhere. Graphs
of ONNX hold a loop of plain operators.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenreduce.ops.tracing import repeat, to_onnx

LINKAGES = ("average", "single", "complete", "ward")
# Below this many entries of distance matrices, threads cost more than they save.
WORTH_THREADS = 1 << 19


def agglomerate(distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None) -> Tensor:
    """`(B, N)`: for each of N items the smallest member of its cluster, when `keep` clusters are left.

    Each round merges the pair of clusters with the smallest linkage distance; of equal pairs the one with the lowest
    (smallest member, smallest member of the other). Distances to the new cluster follow Lance and Williams, in fp32:
    with cluster sizes a, b, c and distances x = d(A, C), y = d(B, C), z = d(A, B),
    average `(a x + b y) / (a + b)`, single `min(x, y)`, complete `max(x, y)`,
    ward `((a + c) x + (b + c) y - c z) / (a + b + c)`.

    Args:
        distance: `(B, N, N)`, finite, of which the part above the diagonal is read; for "ward" squared Euclidean
            distances, times any factor.
        keep: 1 to N.
        linkage: one of `LINKAGES`.
        sizes: `(B, N)`, what each item counts; None: 1. For "ward" distances are then those times `2 s t / (s + t)`.
    """
    run = agglomerate_loop if to_onnx() else agglomerate_operator
    return run(distance, keep, linkage, sizes)


# One operator, so that compiled and exported graphs do not unroll a round for every merge.
@torch.library.custom_op("tokenreduce::agglomerate", mutates_args=())
def agglomerate_operator(distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None) -> Tensor:
    """`agglomerate` everywhere but in graphs of ONNX."""
    between = mirrored(distance)
    members = members_of(between, sizes)
    kernel = compiled() if between.device.type == "cpu" else None
    if kernel is None:
        return agglomerate_reference(between, members, keep, linkage)
    return agglomerate_compiled(kernel, between, members, keep, linkage)


@agglomerate_operator.register_fake
def _(distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None) -> Tensor:
    return distance.new_empty(distance.shape[:2], dtype=torch.long)


@agglomerate_operator.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None
) -> tuple[Tensor, int]:
    """Many batches are one of more images."""

    def batches(tensor: Tensor, dim: int | None) -> Tensor:
        moved = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return moved.flatten(0, 1)

    weights = None if sizes is None else batches(sizes, in_dims[3])
    label = agglomerate_operator(batches(distance, in_dims[0]), keep, linkage, weights)
    return label.unflatten(0, (info.batch_size, -1)), 0


def members_of(distance: Tensor, sizes: Tensor | None) -> Tensor:
    """What each item counts, `(B, N)` in fp32, for `agglomerate` to change."""
    return torch.ones_like(distance[:, 0]) if sizes is None else sizes.float().clone()


def mirrored(distance: Tensor) -> Tensor:
    """The symmetric fp32 matrices with the upper triangles of `distance (B, N, N)`, of zero diagonal."""
    upper = distance.float().triu(1)
    return upper + upper.transpose(1, 2)


def agglomerate_reference(between: Tensor, members: Tensor, keep: int, linkage: str) -> Tensor:
    """`agglomerate` for all images at once in PyTorch, of symmetric fp32 distances; overwrites both tensors."""
    batch, n, _ = between.shape
    label = torch.arange(n, device=between.device).repeat(batch, 1)
    between.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nothing = torch.full_like(members, torch.inf)
    for _ in range(n - keep):
        pair = between.flatten(1).argmin(1, keepdim=True)  # argmin promises the first of equals
        into, gone = pair // n, pair % n
        both = torch.cat([into, gone], 1)
        rows = both[..., None].expand(-1, -1, n)
        x, y = between.gather(1, rows).unbind(1)
        a, b = members.gather(1, both).split(1, 1)
        row = linked(linkage, a, b, members, x, y, x.gather(1, gone)).scatter_(1, both, torch.inf)
        # Places of an image differ, so that nothing depends on an order; fewer launches on a GPU than by an index.
        changed = torch.stack([row, nothing], 1)
        between.scatter_(1, rows, changed).scatter_(2, rows.transpose(1, 2), changed.transpose(1, 2))
        members.scatter_(1, into, a + b)
        label = torch.where(label == gone, into, label)
    return label


def agglomerate_loop(distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None) -> Tensor:
    """`agglomerate` as a loop of the exported graph."""
    batch, n, _ = distance.shape
    index = torch.arange(n, device=distance.device)

    def step(_: Tensor, between: Tensor, members: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        pair = between.flatten(1).argmin(1, keepdim=True)
        into, gone = pair // n, pair % n
        is_into, is_gone = index == into, index == gone
        x, y = (between.gather(1, item[..., None].expand(-1, -1, n))[:, 0] for item in (into, gone))
        a, b, z = members.gather(1, into), members.gather(1, gone), x.gather(1, gone)
        row = linked(linkage, a, b, members, x, y, z).masked_fill(is_into | is_gone, torch.inf)
        between = torch.where(is_into[:, None], row[..., None], between)
        between = torch.where(is_into[..., None], row[:, None], between)
        between = between.masked_fill(is_gone[:, None] | is_gone[..., None], torch.inf)
        return between, members + b * is_into, torch.where(label == gone, into, label)

    between = mirrored(distance).masked_fill(index == index[:, None], torch.inf)
    label = index.expand(batch, -1).clone()
    return repeat(step, n - keep, between, members_of(between, sizes), label)[2]


def linked(linkage: str, a: Tensor, b: Tensor, members: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The distances to the union of two clusters; arguments as in the formulas of `agglomerate`, `members` for c."""
    if linkage == "average":
        return (a * x + b * y) / (a + b)
    if linkage == "single":
        return torch.minimum(x, y)
    if linkage == "complete":
        return torch.maximum(x, y)
    return ((a + members) * x + (b + members) * y - members * z) / (a + b + members)


def agglomerate_compiled(
    kernel: Callable[..., None], between: Tensor, members: Tensor, keep: int, linkage: str
) -> Tensor:
    """`agglomerate` image by image with `agglomerate_image`, compiled or not; overwrites `between` and `members`."""
    batch, n, _ = between.shape
    label = torch.empty(batch, n, dtype=torch.long)
    nearest, near = torch.empty_like(label), torch.empty_like(between[:, 0])
    arrays = [tensor.detach().numpy() for tensor in (between, label, members, near, nearest)]
    code = LINKAGES.index(linkage)

    def work(images: range) -> None:
        for image in images:
            kernel(keep, code, *(array[image] for array in arrays))

    # Threads of Python around a kernel without the GIL, not numba's prange: its pools end the process when two threads
    # enter them at once (workqueue) or after a fork (OpenMP).
    threads = min(batch, torch.get_num_threads()) if between.numel() >= WORTH_THREADS else 1
    if threads == 1:
        work(range(batch))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [range(first, batch, threads) for first in range(threads)]))
    return label


@lru_cache(maxsize=1)
def compiled() -> Callable[..., None] | None:
    """`agglomerate_image` compiled by numba, or None without numba."""
    try:
        import numba
    except ImportError:
        return None
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(agglomerate_image)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
        return numba.njit(nogil=True, error_model="numpy")(agglomerate_image)


def agglomerate_image(keep: int, linkage: int, between: Any, label: Any, members: Any, near: Any, nearest: Any) -> None:
    """`agglomerate` for one image: fp32 arrays `between (N, N)`, `members (N)`, `near (N)`, int64 `label`, `nearest`.

    Every cluster remembers its nearest one among those with a higher number and the distance to it (`nearest`, `near`;
    -1: to be searched again), so that a round takes about N steps instead of N squared.
    """
    n = between.shape[0]
    for row in range(n):
        label[row], nearest[row] = row, -1
    for _ in range(n - keep):
        into = -1
        for row in range(n):
            if label[row] != row:
                continue
            if nearest[row] < 0:
                for other in range(row + 1, n):
                    if label[other] == other and (nearest[row] < 0 or between[row, other] < near[row]):
                        near[row], nearest[row] = between[row, other], other
            if nearest[row] >= 0 and (into < 0 or near[row] < near[into]):
                into = row
        gone = nearest[into]
        a, b, z = members[into], members[gone], between[into, gone]
        for other in range(n):
            if label[other] != other or other in (into, gone):
                continue
            x, y, c = between[into, other], between[gone, other], members[other]
            if linkage == 0:
                new = (a * x + b * y) / (a + b)
            elif linkage == 1:
                new = x if x < y else y
            elif linkage == 2:
                new = x if x > y else y
            else:
                new = ((a + c) * x + (b + c) * y - c * z) / (a + b + c)
            between[into, other] = between[other, into] = new
            if other < into and (new < near[other] or (new == near[other] and into <= nearest[other])):
                near[other], nearest[other] = new, into
            elif other < gone and nearest[other] in (into, gone):
                nearest[other] = -1
        for other in range(n):
            if label[other] == gone:
                label[other] = into
        members[into] += b
        nearest[into] = -1
