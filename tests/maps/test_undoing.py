"""Undoing chains of maps: what may be joined is joined, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tokenreduce import TokenMap
from tokenreduce.maps.restoring import MODES, Around, Restoring, looks_back, restore_tokens, undoing

BATCH, PREFIX, SUFFIX = 2, 2, 1


def integer(n: int, m: int, seed: int, undo: bool = False) -> TokenMap:
    g = torch.Generator().manual_seed(seed)
    first = torch.arange(m).expand(BATCH, -1)  # every output has a member
    dest = torch.randint(m, (BATCH, n), generator=g).scatter(1, first, first)
    own = torch.rand(BATCH, n, m, generator=g)
    return TokenMap(m, dest=dest, undo=own / own.sum(2, keepdim=True) if undo else None)


def dense(n: int, m: int, seed: int) -> TokenMap:
    share = torch.rand(BATCH, m, n, generator=torch.Generator().manual_seed(seed))
    return TokenMap(m, share=share / share.sum(1, keepdim=True))


# How many maps are left to undo, softly and as copies.
CHAINS = {
    "none": ([], 0, 0),
    "one": ([integer(9, 5, 0)], 1, 1),
    "three in a row": ([integer(9, 7, 1), integer(7, 4, 2), integer(4, 2, 3)], 1, 1),
    "a dense one between": ([integer(9, 7, 4), dense(7, 5, 5), integer(5, 2, 6)], 3, 1),
    "dense ones": ([dense(9, 6, 7), dense(6, 4, 8)], 2, 1),
    "an own undo": ([integer(9, 6, 9), integer(6, 4, 10, undo=True), integer(4, 3, 11)], 3, 1),
    "two after a dense one": ([dense(9, 7, 12), integer(7, 5, 13), integer(5, 3, 14)], 2, 1),
}
by_chain = pytest.mark.parametrize(("maps", "softly", "copying"), CHAINS.values(), ids=CHAINS)


@by_chain
def test_integer_maps_in_a_row_become_one(maps, softly: int, copying: int) -> None:
    assert len(undoing(maps)) == softly and len(undoing(maps, soft=False)) == copying
    for soft in (True, False):
        found = undoing(maps, soft=soft)
        counts = [token_map.count for token_map in found]
        assert counts == sorted(counts) and (not maps or counts[0] == maps[-1].count), "the last is undone first"


@by_chain
def test_joined_maps_restore_as_one_after_the_other(maps, softly: int, copying: int) -> None:
    left = maps[-1].count if maps else 9
    x = torch.randn(BATCH, PREFIX + left + SUFFIX, 4, generator=torch.Generator().manual_seed(20))
    for mode in ("soft", "copy"):
        expected = x
        for token_map in reversed(maps):
            expected = undone(mode, expected, token_map)
        assert torch.allclose(restore_tokens(mode, x, maps, [], PREFIX, SUFFIX), expected, atol=1e-5)


def undone(mode: str, x: Tensor, token_map: TokenMap) -> Tensor:
    """One map, token by token."""
    matrix, end = token_map.undo_matrix(), PREFIX + token_map.count
    out = x.new_zeros(BATCH, PREFIX + token_map.entered + SUFFIX, x.shape[2])
    out[:, :PREFIX], out[:, -SUFFIX:] = x[:, :PREFIX], x[:, end:]
    for b in range(BATCH):
        for i in range(token_map.entered):
            shares = matrix[b, i].tolist()
            if mode == "copy":
                shares = [float(k == shares.index(max(shares))) for k in range(token_map.count)]
            for k, share in enumerate(shares):
                out[b, PREFIX + i] += share * x[b, PREFIX + k]
    return out


def test_a_patch_cannot_change_how_it_restores() -> None:
    restoring = Restoring("copy", "delta", ends=True, taps=False, charged=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        restoring.ends = False  # type: ignore[misc]


def test_modes_that_look_back() -> None:
    assert [mode for mode in MODES if looks_back(mode)] == ["freeze", "delta", "kriging"]


def test_modes_that_look_back_need_the_tokens_around_each_map() -> None:
    maps = [integer(9, 5, 0), integer(5, 3, 1)]
    with pytest.raises(ValueError, match="zip"):
        restore_tokens("delta", torch.randn(BATCH, 6, 4), maps, [], PREFIX, SUFFIX)


@pytest.mark.parametrize("prefix_suffix", [(0, 0), (2, 1)])
@pytest.mark.parametrize("maps", [[integer(9, 5, 0)], [dense(9, 5, 1)], [integer(9, 6, 2), dense(6, 3, 3)]])
def test_delta_gives_back_what_nothing_has_changed_and_freeze_the_tokens_that_left(maps, prefix_suffix) -> None:
    prefix, suffix = prefix_suffix
    x = torch.randn(BATCH, prefix + 9 + suffix, 4, generator=torch.Generator().manual_seed(21))
    start, around = x, []
    for token_map in maps:
        after = token_map.apply(x, None, prefix, suffix)
        around.append(Around(x, after))
        x = after
    for mode in ("delta", "kriging"):
        assert torch.allclose(restore_tokens(mode, x, maps, around, prefix, suffix), start, atol=1e-6)
    expected = x
    for token_map, (before, _, _) in zip(reversed(maps), reversed(around), strict=True):
        frozen = before.clone()
        frozen[:, :prefix], frozen[:, prefix + token_map.entered :] = (
            expected[:, :prefix],
            expected[:, prefix + token_map.count :],
        )
        for b in range(BATCH):
            for m, i in enumerate(token_map.representatives()[b].tolist()):
                frozen[b, prefix + i] = expected[b, prefix + m]
        expected = frozen
    assert torch.equal(restore_tokens("freeze", x, maps, around, prefix, suffix), expected)


@pytest.mark.parametrize("mode", ["copy", "soft", "freeze", "delta"])
def test_restoring_passes_gradients_on(mode: str) -> None:
    token_map = TokenMap(2, dest=torch.tensor([[0, 1, 0]]), rep=torch.tensor([[0, 1]]))
    before = torch.randn(1, 3, 2, requires_grad=True)
    after = token_map.apply(before)
    grown = after * 2
    out = restore_tokens(mode, grown, [token_map], [Around(before, after)], 0, 0)
    out.sum().backward()
    # How often each input token is in the sum, by hand: outputs are means of tokens 0 and 2, and token 1.
    expected = {"copy": [2, 2, 2], "soft": [2, 2, 2], "freeze": [1, 2, 2], "delta": [2, 2, 2]}[mode]
    assert before.grad is not None
    assert torch.allclose(before.grad[0, :, 0], torch.tensor(expected).float())


def test_a_map_of_copies_is_taken_as_it_is() -> None:
    """Making it anew would cost a matrix."""
    single = integer(6, 3, 0)
    assert undoing([single], soft=False)[0] is single
