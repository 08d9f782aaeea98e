"""What every kernel of the folder becomes for A100 and H100, launched as for DeiT-S and DINOv2-L; without a GPU."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib import import_module

import pytest
import torch

pytest.importorskip("triton")
from recorded import MODULES, Launch, recorded

from tokenreduce.ops.triton.attend import attend
from tokenreduce.ops.triton.attended import ward_cluster_attended, ward_match_attended
from tokenreduce.ops.triton.class_rows import class_rows
from tokenreduce.ops.triton.cluster import ward_cluster
from tokenreduce.ops.triton.fuse import merge_fused
from tokenreduce.ops.triton.match import bipartite_match
from tokenreduce.ops.triton.merge import merge_apply
from tokenreduce.ops.triton.restore import restore_apply, size_bias
from tokenreduce.ops.triton.select import fuse_attended, fuse_rest
from tokenreduce.ops.triton.ward import ward_match

# Images, image tokens of each, heads of 64 channels.
SHAPES = {"DeiT-S": (64, 196, 6), "DINOv2-L": (8, 1369, 16)}
PRODUCTS = {"_attend", "_costs", "_match_image", "_match_tile", "_ward_image"}
PUT_AWAY = {"_merge": 2}  # loads and stores around its loops, once a program: the assembler likes few registers better


def launch_all(batch: int, n: int, heads: int) -> None:
    """All operators, as a reducing layer in fp16 calls them. What they would read is zeros."""
    keep, width, dtype = n * 4 // 5, heads * 64, torch.float16
    q, k, v = torch.zeros(batch, n + 1, 3, heads, 64, dtype=dtype).permute(2, 0, 3, 1, 4)
    x, y = torch.zeros(batch, n + 1, width, dtype=dtype), torch.zeros(batch, keep + 1, width, dtype=dtype)
    places = torch.zeros(batch, n, dtype=torch.int64)
    rep, sources, sizes = places[:, :keep].contiguous(), places[:, keep:].contiguous(), torch.ones(batch, n)
    bipartite_match(k[:, :, 1:], keep, 1)
    merge_apply(x, places, rep, sources, None, 1, 0)
    merge_apply(x, places, rep, sources, sizes, 1, 0)
    ward_match(x[:, 1:], sizes, torch.ones(width), 64, [n - n // 5, n - n // 3, n // 2], 1)
    ward_cluster(k[:, :, 1:], sizes, None, 64, False, keep)
    ward_cluster(x[:, 1:], None, torch.ones(width), 64, True, keep)
    fuse_rest(sizes, sizes, keep)
    attention = (q, k, size_bias(sizes, 1, 0), 1, 1, 0.35, 0.01)
    fuse_attended(*attention[:5], n, sizes, keep)
    ward_cluster_attended(x[:, 1:], sizes, torch.ones(width), 64, True, keep, *attention)
    ward_cluster_attended(k[:, :, 1:], sizes, None, 64, False, keep, *attention)
    ward_match_attended(x[:, 1:], sizes, torch.ones(width), 64, [n - n // 5, n - n // 3, n // 2], 1, *attention)
    merge_fused(x, rep, sources, sizes, sizes, 1, 0)
    class_rows(q, k, attention[2], 1)
    attend(q, k, v, attention[2], 0.125)
    restore_apply(y, places, x, y, 1, 0)


@lru_cache
def launches() -> dict[str, list[Launch]]:
    """By model, each kernel once for each of its constants."""
    found: dict[str, list[Launch]] = {}
    for model, shape in SHAPES.items():
        with recorded() as all_launches:
            launch_all(*shape)
        fresh: list[Launch] = []
        for launch in all_launches:
            if not any(launch.same_as(other) for other in sum(found.values(), fresh)):
                fresh.append(launch)
        found[model] = fresh
    return found


def kernels_of(module: str) -> set[str]:
    """Names of the kernels that a file starts."""
    source = import_module(f"tokenreduce.ops.triton.{module}").__file__
    with open(str(source)) as file:
        calls = [node for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.Call)]
    started = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "start"]
    return {node.id for node in started if isinstance(node, ast.Name)}


def test_every_kernel_is_launched() -> None:
    every = set().union(*map(kernels_of, MODULES))
    assert len(every) >= 11 and every == {launch.name for found in launches().values() for launch in found}


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("model", SHAPES)
def test_no_kernel_spills_and_products_are_of_tensor_cores(model: str, arch: int) -> None:
    for launch in launches()[model]:
        cubin = launch.compiled(arch)
        words = f"{launch.name} {launch.kwargs}: {cubin.spills} spills, {cubin.registers} registers"
        assert cubin.spills <= PUT_AWAY.get(launch.name, 0), words
        assert cubin.uses_tensor_cores == (launch.name in PRODUCTS), words
        assert cubin.shared <= 160 * 1024, words  # of which an A100 has 164 KB
