"""`bipartite_merge` is `bipartite_match` and then `merge_apply`, however images and threads divide."""

from __future__ import annotations

import pytest
import torch
from kernel_calls import by_reference, kernel

from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.parts.bipartite import match_bipartite

pytestmark = pytest.mark.skipif(bool(dispatch.load()), reason=f"kernels cannot be compiled here: {dispatch.load()}")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 3, 8])
def test_matching_and_merging_in_one_call_is_both(batch: int, threads: int) -> None:
    torch.manual_seed(0)
    x, keys, sizes = torch.randn(batch, 203, 40), torch.randn(batch, 6, 203, 20), torch.rand(batch, 200) + 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out, grown, bias, dest, rep, sources = kernel("bipartite_merge")(x, keys, sizes, 150, 0, 2, 1)
    finally:
        torch.set_num_threads(before)
    expected = by_reference(match_bipartite, keys[:, :, 2:-1], 150, 0)
    assert torch.equal(dest, expected.dest)
    assert torch.equal(rep, expected.rep)
    assert torch.equal(sources, expected.sources)
    merged, sums, _ = by_reference(expected.merge, x, sizes, 2, 1)
    torch.testing.assert_close(out, merged)
    torch.testing.assert_close(grown, sums)
    torch.testing.assert_close(bias, torch.nn.functional.pad(sums.log(), (2, 1))[:, None, None])
