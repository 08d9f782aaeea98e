"""How rows leave and come back, and what a cache then holds, against lists."""

from __future__ import annotations

import random

import pytest
import torch

from tokenreduce.forward.language.kept import Kept, whole
from tokenreduce.forward.language.passage import Passage


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places removed and real, of three prompts of seven places; each has a real one that stays."""
    draw = random.Random(seed)
    rows = [[draw.choice(("pad", "gone", "stay", "stay")) for _ in range(6)] + ["stay"] for _ in range(3)]
    return tuple(torch.tensor([[sign == name for sign in row] for row in rows]) for name in ("gone", "pad"))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(20))
def test_rows_positions_and_outputs(seed: int) -> None:
    removed, pads = drawn(seed)
    x = torch.randn(3, 7, 2)
    passage = Passage.of(removed, ~pads, past=4)
    stay = [[i for i in range(7) if not removed[b, i] and not pads[b, i]] for b in range(3)]
    most = max(map(len, stay))
    before = Kept(torch.zeros(3, 0), torch.zeros(3, 0), 4, torch.tensor([1, 0, 2]), False)
    rows, back = passage.rows(x), passage.restore(passage.rows(x))
    kept, new = (passage.positions(None, renumber, before) for renumber in (False, True))
    for b, places in enumerate(stay):
        fillers = most - len(places)
        assert passage.valid[b].tolist() == [False] * fillers + [True] * len(places)
        assert torch.equal(rows[b, fillers:], x[b, places])
        assert kept[b, fillers:].tolist() == [4 + i for i in places]
        gone = [int(removed[b, : i + 1].sum()) + int(before.removed[b]) for i in places]
        assert new[b, fillers:].tolist() == [4 + i - n for i, n in zip(places, gone, strict=True)]
        for i in range(7):
            shown = max((j for j in places if j <= i), default=None)
            assert shown is None or torch.equal(back[b, i], x[b, shown])


def test_positions_of_several_axes() -> None:
    removed = torch.tensor([[False, True, False]])
    passage = Passage.of(removed, None, 0)
    axes = torch.arange(9).view(3, 1, 3)
    assert passage.positions(axes, False, None).tolist() == [[[0, 2]], [[3, 5]], [[6, 8]]]


def test_what_a_cache_holds_after_two_passages_and_some_words() -> None:
    first = Passage.of(torch.tensor([[False, True, False], [False] * 3]), None, 0)
    held = first.then(whole(2, 0, torch.device("cpu")))
    assert held.columns.tolist() == [[1, 0, 2], [0, 1, 2]] or held.valid.tolist() == [[False, True, True], [True] * 3]
    assert (held.seen, held.missing, held.fillers, held.removed.tolist()) == (3, 0, True, [1, 0])
    later = held.until(5)
    assert later.columns[:, 3:].tolist() == [[3, 4]] * 2 and later.valid[:, 3:].all()
    second = Passage.of(torch.tensor([[True, True, False]] * 2), None, 5)
    held = second.then(later)
    assert held.columns[:, 5:].tolist() == [[7]] * 2 and (held.seen, held.missing) == (8, 2)
    assert held.removed.tolist() == [3, 2]


def test_masks_of_entries() -> None:
    held = Kept(torch.tensor([[0, 2], [1, 2]]), torch.tensor([[True, True], [False, True]]), 3, torch.zeros(2), True)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    assert held.mask(mask, 1).tolist() == [[False, True, True], [False, True, False]]
    assert held.mask(None, 2).tolist() == [[True, True, True, True], [False, True, True, True]]
    full = Kept(held.columns, torch.ones(2, 2, dtype=torch.bool), 3, torch.zeros(2), False)
    assert full.mask(None, 2) is None


def test_cutting() -> None:
    held = Kept(
        torch.tensor([[0, 1, 4, 5], [1, 2, 4, 5]]), torch.ones(2, 4, dtype=torch.bool), 6, torch.zeros(2), False
    )
    cut = held.cut(2)
    assert cut.columns.tolist() == [[0, 1], [1, 2]] and (cut.seen, cut.missing) == (4, 2)
    for places in (3, 5):
        with pytest.raises(ValueError, match=f"the last {places} places"):
            held.cut(places)
