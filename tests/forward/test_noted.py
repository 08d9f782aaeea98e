"""Notes to the next run: of one patch, in one thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from patches_by_hand import GRID, reduction

from tokenreduce.forward import noted


@pytest.fixture(autouse=True)
def nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noted, "_notes", noted._Notes())


def elsewhere(function, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def test_grids_are_of_one_patch_and_one_thread() -> None:
    one, other = reduction(), reduction()
    assert noted.noted_grid(one) == GRID
    noted.note_grid(one, (2, 5))
    assert noted.noted_grid(one) == (2, 5) and noted.noted_grid(one) == (2, 5)
    assert noted.noted_grid(other) == GRID
    assert elsewhere(noted.noted_grid, one) == GRID
    noted.note_grid(other, (7, 1))
    assert noted.noted_grid(other) == (7, 1) and noted.noted_grid(one) == GRID


def test_videos_are_taken_once() -> None:
    one, other = reduction(), reduction()
    first, second, third = (torch.zeros(1, 3, frames, 2, 2) for frames in (1, 2, 3))
    assert noted.taken_video(one) is None
    noted.note_video(one, first, (1, 2, 2))
    noted.note_video(other, second, (2, 1, 1))
    noted.note_video(one, third, (3, 2, 2))  # in the place of the first
    assert elsewhere(noted.taken_video, one) is None
    video, tubelet = noted.taken_video(one)
    assert video is third and tubelet == (3, 2, 2)
    assert noted.taken_video(one) is None, "nothing here may keep it alive"
    video, tubelet = noted.taken_video(other)
    assert video is second and tubelet == (2, 1, 1)
    assert noted._notes.videos == []


def test_layers_are_collected_of_one_patch_until_told_otherwise() -> None:
    one, other = reduction(), reduction()
    assert noted.collected(one) == frozenset() and noted.collected(one, frozenset({3})) == {3}
    nobody = noted.collect_layers(one, frozenset({0, 2}))
    assert nobody == (None, frozenset())
    assert noted.collected(one) == {0, 2} and noted.collected(one, frozenset({3})) == {0, 2}
    assert noted.collected(other) == frozenset() and noted.collected(other, frozenset({1})) == {1}
    assert elsewhere(noted.collected, one) == frozenset()
    before = noted.collect_layers(other)
    assert before == (one, frozenset({0, 2}))
    assert noted.collected(other) == {0, 1, 2, 3} and noted.collected(one) == frozenset()
    noted.collect_layers(*before)
    assert noted.collected(one) == {0, 2}
    assert noted.collect_layers(None) == before
    assert noted.collected(one, frozenset({1})) == {1}
    noted.collect_layers(one, frozenset())  # told that none is: another thing than not being told
    assert noted.collected(one, frozenset({1})) == frozenset()
