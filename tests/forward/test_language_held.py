"""What later layers of a reduced cache hold, and their masks, against loops."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.forward.language.held import Held, all_held, translated
from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.stream import Later


def some() -> Held:
    """Of two prompts of five entries: 0, 2, 4 and, with a filler in front, 1, 4."""
    within, valid = torch.tensor([[0, 2, 4], [3, 1, 4]]), torch.tensor([[True] * 3, [False, True, True]])
    return Held(within, valid, 5, True)


def test_growing_and_cutting() -> None:
    held = some().until(7)
    assert held.within[:, 3:].tolist() == [[5, 6]] * 2 and held.valid[:, 3:].all() and held.all == 7
    more = held.then(torch.tensor([[0, 2], [1, 2]]), torch.ones(2, 2, dtype=torch.bool), 3)
    assert more.within[:, 5:].tolist() == [[7, 9], [8, 9]] and more.all == 10 and more.fillers
    assert more.ends_whole(1) and not more.ends_whole(2) and more.cut(1).all == 9
    assert not all_held(2, 3, torch.device("cpu")).then(torch.tensor([[1]] * 2), torch.tensor([[True]] * 2), 2).fillers


def test_places_of_the_last_layer() -> None:
    """Entries of the first layers stand for places; of several stages the last counts, and words since are added."""
    columns, valid = torch.tensor([[0, 3, 4, 8, 9, 10]] * 2), torch.ones(2, 6, dtype=torch.bool)
    valid[0, 0] = False
    kept = Kept(columns, valid, 11, torch.tensor([5, 5]), True)
    assert [x.tolist() for x in kept.last()] == [columns.tolist(), valid.tolist()]
    first = all_held(2, 6, torch.device("cpu"))
    places, real = Kept(columns, valid, 11, torch.tensor([5, 5]), True, {3: some(), 1: first}).last()
    assert places.tolist() == [[0, 4, 9, 10], [8, 3, 9, 10]]
    assert real.tolist() == [[False, True, True, True], [False, True, True, True]]


def test_selecting_and_repeating() -> None:
    assert some().select(torch.tensor([1, 1])).within.tolist() == [[3, 1, 4]] * 2
    assert some().repeat(2).valid.tolist() == [[True] * 3] * 2 + [[False, True, True]] * 2


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_masks_pair_by_pair(kind: str) -> None:
    held, rows, past = some(), torch.tensor([[0, 2], [1, 2]]), 2
    least = torch.finfo(torch.float32).min
    sees = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    mask = {"none": None, "bool": sees, "float": torch.zeros(2, 1, 3, 5).masked_fill(~sees, least)}[kind]
    found = translated(mask, rows, held.within, held.valid, past)
    for b in range(2):
        for i, row in enumerate(rows[b].tolist()):
            for j, entry in enumerate(held.within[b].tolist()):
                expected = (entry <= row + past if mask is None else bool(sees[b, 0, row, entry])) and held.valid[b, j]
                assert bool(found[b, 0, i, j] > -1 if kind == "float" else found[b, 0, i, j]) == bool(expected)


def test_a_step_asks_for_no_mask_unless_there_are_fillers() -> None:
    held = all_held(1, 3, torch.device("cpu"))
    assert Later({2: held}, 4, 1).mask(2, None) is None
    assert Later({2: held}, 4, 2).mask(2, None).tolist() == [[[[True] * 3 + [False], [True] * 4]]]
    later = Later({2: some()}, 6, 1)
    assert later.mask(1, None) is None
    mask = later.mask(3, None)
    assert mask.tolist() == [[[[True] * 4]], [[[False, True, True, True]]]] and later.mask(2, None) is mask
