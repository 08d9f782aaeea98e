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
    assert noted.noted_grid(one, 12) == GRID and noted.noted_grid(one, 10) is None
    noted.note_grid(one, (2, 5))
    assert noted.noted_grid(one, 10) == (2, 5) and noted.noted_grid(one, 10) == (2, 5)
    assert noted.noted_grid(one, 12) is None, "something else was embedded"
    assert noted.noted_grid(other, 12) == GRID
    assert elsewhere(noted.noted_grid, one, 12) == GRID
    noted.note_grid(other, (7, 1))
    assert noted.noted_grid(other, 7) == (7, 1) and noted.noted_grid(one, 10) == (2, 5)


def test_grids_of_several_images_are_told_apart_by_their_tokens() -> None:
    one = reduction(method="pool")
    for grid in ((2, 6), (2, 5), (2, 6)):
        noted.note_grid(one, grid)
    assert noted.taken_grid(one, 12) == (2, 6) and noted.taken_grid(one, 10) == (2, 5)
    assert noted.taken_grid(one, 10) == (2, 5), "the same images once more"
    noted.note_grid(one, (1, 10))
    assert noted.taken_grid(one, 10) == (1, 10), "what was used is over once another is embedded"


def test_two_grids_with_as_many_tokens_are_refused_to_methods_that_read_grids() -> None:
    reads, other = reduction(method="pool"), reduction(method="random")
    for patch in (reads, other):
        noted.note_grid(patch, (2, 6))
        noted.note_grid(patch, (6, 2))
    with pytest.raises(ValueError, match=r"12 tokens are grids of 2x6 and 6x2 were embedded before any"):
        noted.taken_grid(reads, 12)
    assert noted.taken_grid(other, 12) is None
    for patch in (reads, other):  # the next image is not refused
        noted.note_grid(patch, (1, 12))
        assert noted.taken_grid(patch, 12) == (1, 12)
    noted.note_grid(reads, (2, 6))
    noted.note_grid(reads, (6, 2), only=True)
    assert noted.taken_grid(reads, 12) == (6, 2)


def test_what_nobody_runs_is_not_kept_for_ever() -> None:
    one = reduction(method="pool")
    for side in range(1, 200):
        noted.note_grid(one, (side, 7))
    assert len(noted._notes.grids) == noted.MOST
    assert noted.taken_grid(one, 5) is None and noted._notes.grids == []
    noted.note_grid(one, (2, 6))
    noted.drop_notes(one)
    assert noted._notes.grids == [] and noted.noted_grid(one, 12) == GRID


def test_videos_are_taken_once() -> None:
    one, other = reduction(), reduction()
    first, second, third = (torch.zeros(1, 3, frames, 2, 2) for frames in (1, 2, 3))
    assert noted.taken_video(one, 1, 1) is None
    noted.note_video(one, first, (1, 2, 2))
    noted.note_video(other, second, (2, 1, 1))
    noted.note_video(one, third, (1, 2, 2))
    assert elsewhere(noted.taken_video, one, 1, 1) is None
    video, tubelet = noted.taken_video(one, 1, 3)
    assert video is third and tubelet == (1, 2, 2)
    assert noted.taken_video(one, 1, 1) is None, "nothing here may keep it alive"
    for _ in range(2):
        noted.note_video(one, first, (1, 2, 2))
    assert noted.taken_video(one, 1, 1)[0] is first, "the same video twice"
    noted.note_video(one, first, (1, 2, 2))
    noted.drop_notes(one)
    assert noted.taken_video(one, 1, 1) is None
    video, tubelet = noted.taken_video(other, 5, 3)  # a model that leaves tokens out
    assert video is second and tubelet == (2, 1, 1)
    assert noted._notes.videos == []


def test_videos_of_one_shape_are_refused_once() -> None:
    one = reduction()
    for video in (torch.zeros(1, 3, 2, 2, 2), torch.ones(1, 3, 2, 2, 2), torch.zeros(2, 3, 2, 2, 2)):
        noted.note_video(one, video, (2, 1, 1))
    assert noted.taken_video(one, 2, 4)[0] is video, "told apart by the number of videos"
    for value in (0, 1):
        noted.note_video(one, torch.full((1, 3, 2, 2, 2), float(value)), (2, 1, 1))
    with pytest.raises(ValueError, match="several videos were embedded before any of them ran"):
        noted.taken_video(one, 1, 4)
    noted.note_video(one, torch.ones(1, 3, 2, 2, 2), (2, 1, 1))
    assert noted.taken_video(one, 1, 4)[0].eq(1).all()
    for frames in range(1, 20):
        noted.note_video(one, torch.zeros(1, 3, frames, 2, 2), (1, 2, 2))
    assert len(noted._notes.videos) == noted.MOST_VIDEOS
    with pytest.raises(ValueError, match="several videos were embedded"):
        noted.taken_video(one, 1, 7)
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
