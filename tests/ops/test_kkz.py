"""Farthest-first seeding: brute force, the reference and the numba kernel choose the same points."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce.ops import farthest_first as kkz
from tokenreduce.reducers.parts.clusters import squared_distances


def brute_force(distance: list[list[float]], first: int, count: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        rest = [i for i in range(len(distance)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return chosen


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(["random", "ties", "identical"]))
def test_reference_and_kernel_equal_brute_force(n, batch, seed, kind) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, n, 3, generator=g) if kind == "random" else torch.zeros(batch, n, 3)
    if kind == "ties":
        x = torch.randint(0, 2, (batch, n, 3), generator=g).float()
    distance, first = squared_distances(x), x.norm(dim=-1).argmax(1)
    for count in {1, (n + 1) // 2, n}:
        expected = [brute_force(d, int(f), count) for d, f in zip(distance.tolist(), first, strict=True)]
        assert kkz.farthest_first_reference(distance, first, count).tolist() == expected
        assert kkz.farthest_first(distance, first, count).tolist() == expected


def test_the_kernel_is_used_and_equals_the_reference_on_larger_inputs(monkeypatch) -> None:
    pytest.importorskip("numba")
    distance = squared_distances(torch.randn(5, 200, 16))
    first = torch.tensor([0, 199, 7, 7, 50])
    expected = kkz.farthest_first_reference(distance, first, 137)
    monkeypatch.setattr(kkz, "farthest_first_reference", None)
    assert torch.equal(kkz.farthest_first(distance, first, 137), expected)
    flipped = distance.transpose(1, 2)  # not contiguous
    assert torch.equal(kkz.farthest_first(flipped, first, 137), expected)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kkz.farthest_first(distance, first, 137), range(8)))
    assert all(torch.equal(chosen, expected) for chosen in found)


def test_compiled_and_fake_inputs_take_the_reference() -> None:
    torch._dynamo.reset()
    distance, first = squared_distances(torch.randn(2, 12, 3)), torch.tensor([3, 4])
    compiled = torch.compile(kkz.farthest_first, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(distance, first, 5), kkz.farthest_first(distance, first, 5))
    assert kkz.farthest_first(distance.to("meta"), first.to("meta"), 5).shape == (2, 5)


def test_works_without_numba_and_does_not_import_it_early() -> None:
    code = (
        "import sys, torch, tokenreduce; tokenreduce.methods(); assert 'numba' not in sys.modules; "
        "sys.modules['numba'] = None; x = torch.randn(1, 9, 3); "
        "print(tokenreduce.plan(x, 'kmeans', keep=4, seeding='kkz').count)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "4"


def test_works_in_a_forked_process_after_use_in_its_parent() -> None:
    """As in a data loader's worker: some threading layers of numba abort there."""
    distance = torch.rand(3, 9, 9)
    first = torch.zeros(3, dtype=torch.long)
    expected = kkz.farthest_first(distance, first, 4)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert torch.equal(pool.apply_async(kkz.farthest_first, (distance, first, 4)).get(timeout=60), expected)
