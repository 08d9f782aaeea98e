"""The operators in Triton, by the names that `dispatch.choose` is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenreduce.ops.triton.attended import ward_cluster_attended, ward_match_attended
from tokenreduce.ops.triton.class_rows import class_rows
from tokenreduce.ops.triton.cluster import ward_cluster
from tokenreduce.ops.triton.fuse import merge_fused
from tokenreduce.ops.triton.match import bipartite_match
from tokenreduce.ops.triton.merge import bipartite_merge, merge_apply
from tokenreduce.ops.triton.restore import restore_apply, size_bias
from tokenreduce.ops.triton.scan import selective_scan, selective_scan_backward
from tokenreduce.ops.triton.select import fuse_attended, fuse_rest
from tokenreduce.ops.triton.ward import ward_match

OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        bipartite_match,
        bipartite_merge,
        class_rows,
        fuse_attended,
        fuse_rest,
        merge_apply,
        merge_fused,
        restore_apply,
        selective_scan,
        selective_scan_backward,
        size_bias,
        ward_cluster,
        ward_cluster_attended,
        ward_match,
        ward_match_attended,
    )
}
