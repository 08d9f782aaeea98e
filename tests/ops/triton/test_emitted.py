"""Kernels as TorchInductor emits them compile for a GPU: its types of numbers are not those of a launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from emitted import cubin, emitted

from tokenreduce.ops.triton.attend import attend
from tokenreduce.ops.triton.attended import ward_cluster_attended, ward_match_attended
from tokenreduce.ops.triton.class_rows import class_rows
from tokenreduce.ops.triton.cluster import ward_cluster


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [20, 197])
def test_attention_with_sizes(n: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """Queries, keys and values are views of one projection, of which nothing is copied first."""

    def attended(qkv: Tensor, logs: Tensor) -> tuple[Tensor]:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return (attend.operator(q, k, v, logs, 0.125).transpose(1, 2).flatten(2),)  # type: ignore[attr-defined]

    sources = emitted(attended, torch.empty(2, n, 3, 6, 64, dtype=dtype), torch.empty(2, 1, 1, n))
    assert list(sources) == ["_attend"]
    found = cubin("_attend", sources["_attend"], tmp_path)
    assert found.uses_tensor_cores and found.spills == 0


def test_clusters_of_many_tokens(tmp_path: Path) -> None:
    """They write to tensors in place, and their loops carry numbers of a type that must not change."""
    n = 300

    def clustered(keys: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        return tuple(ward_cluster.operator(keys, sizes, None, 64, False, n - 30))  # type: ignore[attr-defined]

    sources = emitted(clustered, torch.empty(2, 6, n, 64, dtype=torch.float16), torch.empty(2, n))
    assert set(sources) == {"_mean", "_costs", "_cluster"}
    for name, source in sources.items():
        assert cubin(name, source, tmp_path).uses_tensor_cores == (name == "_costs")


@pytest.mark.parametrize("rounds", [False, True])
def test_clusters_that_are_attended(rounds: bool, tmp_path: Path) -> None:
    """One launch writes points and rows, and nothing is copied first. Numbers come in fp64."""
    n = 197

    def clustered(x: Tensor, qkv: Tensor, sizes: Tensor, signs: Tensor, logs: Tensor) -> tuple[Tensor, ...]:
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        common, attention = (x.narrow(1, 1, n - 1), sizes, signs, 64), (q, k, logs, 1, 1, 0.35, 0.01)
        if rounds:
            return tuple(ward_match_attended.operator(*common, [n - 30, n - 50], 1, *attention))  # type: ignore[attr-defined]
        return tuple(ward_cluster_attended.operator(*common, True, n - 30, *attention))  # type: ignore[attr-defined]

    x, qkv = (torch.empty(2, n, *more, dtype=torch.float16) for more in ((384,), (3, 6, 64)))
    sources = emitted(clustered, x, qkv, torch.empty(2, n - 1), torch.empty(384), torch.empty(2, 1, 1, n))
    products = {"_ward_image"} if rounds else {"_costs"}
    assert set(sources) == {"_sketch_and_rows", *(products if rounds else {"_costs", "_cluster"})}
    for name, source in sources.items():
        found = cubin(name, source, tmp_path)
        assert found.uses_tensor_cores == (name in products) and found.spills == 0


def test_attention_of_class_tokens(tmp_path: Path) -> None:
    """Its scale comes in fp64, and the loop over keys keeps fp32."""

    def attended(queries: Tensor, keys: Tensor) -> tuple[Tensor]:
        return (class_rows.operator(queries, keys, None, 1),)  # type: ignore[attr-defined]

    heads = torch.empty(2, 6, 197, 64, dtype=torch.float16)
    sources = emitted(attended, heads, heads)
    assert "MUFU" in cubin("_class_row", sources["_class_row"], tmp_path).mnemonics
