"""Clusters whose tokens weigh by the class token's attention, which the launch that makes points finds too."""

from __future__ import annotations

from torch import Tensor

from tokenreduce.ops.triton.class_rows import Rows, Weights
from tokenreduce.ops.triton.cluster import check_keep, cluster_points
from tokenreduce.ops.triton.launching import operator
from tokenreduce.ops.triton.points import mean_points, sketched_points
from tokenreduce.ops.triton.tensors import in_a_row
from tokenreduce.ops.triton.ward import match_in_rounds


@operator
def ward_cluster_attended(
    metric: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, directions: bool, keep: int,
    queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int, prefix: int, part: float, least: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`ward_cluster` of tokens that weigh `size^(1 - part) a^part`: a is the attention of the first `class_tokens` of
    `queries (B, H, A, d)` to them, which stand after `prefix` others among the `keys (B, H, A, d)`, mean over heads
    and class tokens, and at least `least` / N. `bias (B or 1, 1, 1, A)` is in fp32.

    Raises: InvalidValueError if `keep` is not in 1 to N.
    """
    check_keep(keep, metric.shape[-2])
    metric, rows = in_a_row(metric), Rows.of(queries, keys, bias, class_tokens)
    if directions:
        points, _, _ = sketched_points(metric, None, signs, width, 1, rows)
    else:
        points = mean_points(metric if metric.ndim == 4 else metric[:, None], rows)
    return cluster_points(points, counted(sizes, part), keep, Weights(rows.rows, prefix, part, least))


@operator
def ward_match_attended(
    features: Tensor, sizes: Tensor | None, signs: Tensor | None, width: int, counts: list[int], first: int,
    queries: Tensor, keys: Tensor, bias: Tensor | None, class_tokens: int, prefix: int, part: float, least: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`ward_match` of tokens that weigh as in `ward_cluster_attended`."""
    rows, sizes = Rows.of(queries, keys, bias, class_tokens), counted(sizes, part)
    sizes = None if sizes is None else in_a_row(sizes)
    made = sketched_points(in_a_row(features), sizes, signs, width, max(1, len(counts)), rows)
    return match_in_rounds(*made, counts, first, Weights(rows.rows, prefix, part, least))


def counted(sizes: Tensor | None, part: float) -> Tensor | None:
    """The sizes, where they count: to the power 0 they do not, nor do those of 0, whose logarithm is no number."""
    return None if part == 1 else sizes
