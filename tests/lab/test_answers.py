"""Answers, agreement and their intervals against loops; bytes of the cache against what is counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenreduce import patch, report
from tokenreduce.lab.data import scenes
from tokenreduce.lab.quality import bootstrap
from tokenreduce.lab.quality.answers import answer, hits, mean_interval, same
from tokenreduce.lab.quality.kept_places import draw_kept, kept_tokens
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SceneProcessor

PROCESSOR, SCENES = SceneProcessor(), scenes.load(6, seed=9)
TEXT = ["how many things are there ?", "are there any bags ?", "what is left of the shoe ?"] * 2


@pytest.fixture(scope="module")
def model() -> Any:
    return scene_vlm()


def test_hits_and_agreement() -> None:
    said = ["Top  left", " yes ", "no", ""]
    assert hits(said, [["top left"], ["no", "yes"], ["yes"], ["no"]]).tolist() == [1, 1, 0, 0]
    assert same(said, ["top left", "yes", "NO", "no"]).tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="shorter"):
        hits(said, [["yes"]])


def test_intervals_draw_images_and_not_prompts() -> None:
    values = torch.tensor([1.0, 1, 1, 0, 0, 1, 0])
    images = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    means = []
    for times in bootstrap.draw(4, 300, seed=4).tolist():
        drawn = [v for image, n in enumerate(times) for v in values[images == image].tolist() * int(n)]
        means.append(sum(drawn) / len(drawn))
    expected = bootstrap.interval(torch.tensor(means, dtype=torch.float64))
    assert mean_interval(values, images, 300, seed=4) == pytest.approx(expected)
    assert mean_interval(torch.ones(7), images) == (1, 1)


def test_batches_change_no_answer(model: Any) -> None:
    done: list[int] = []
    five = answer(model, PROCESSOR, SCENES.images, TEXT, 4, done.append, max_new_tokens=3)
    one = answer(model, PROCESSOR, SCENES.images, TEXT, 1, max_new_tokens=3)
    assert five.texts == one.texts and done == [4, 6]
    assert five.kv_bytes > one.kv_bytes > 0, "fillers of a batch count"


def test_bytes_of_the_cache(model: Any) -> None:
    patched = patch(scene_vlm(), "divprune", keep=0.1)
    said = answer(patched, PROCESSOR, SCENES.images, TEXT, 1, max_new_tokens=3)
    words = [len(text.split()) + 1 for text in TEXT]  # with the first word
    a_row = 2 * 6 * 96 * 4  # keys and values, layers, width, bytes
    assert said.kv_bytes == sum(a_row * (10 + length) for length in words)
    for whole in (model, patch(scene_vlm(), "divprune", keep=1.0)):
        said = answer(whole, PROCESSOR, SCENES.images, TEXT, 1, max_new_tokens=3)
        assert said.kv_bytes == sum(a_row * (100 + length) for length in words)


def test_an_unpatched_model_has_all_tokens(model: Any) -> None:
    inputs = PROCESSOR(images=SCENES.images[:1], text=TEXT[:1])
    assert kept_tokens(model, inputs).tolist() == list(range(100))


def test_tokens_that_the_prompt_decided_on(model: Any) -> None:
    """FastV keeps before layer 2 what the last word attends to most in layer 1."""
    inputs = PROCESSOR(images=SCENES.images[:1], text=TEXT[2:3])
    eager = scene_vlm()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
    best = maps[1][0, :, -1, 1:101].mean(0).topk(20).indices.sort().values
    patched = patch(scene_vlm(), "fastv", keep=0.2)
    assert kept_tokens(patched, inputs).tolist() == best.tolist()


def test_tokens_of_the_last_of_several_stages(model: Any) -> None:
    inputs = PROCESSOR(images=SCENES.images[:1], text=TEXT[2:3])
    first = set(kept_tokens(patch(scene_vlm(), "divprune", keep={0: 0.5}), inputs).tolist())
    both = patch(scene_vlm(), "divprune", keep={0: 0.5, 3: 0.2})
    last = kept_tokens(both, inputs).tolist()
    assert len(first) == 50 and len(last) == 10 == report(both).visual_left and set(last) < first


def test_the_picture_fades_what_has_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from matplotlib.axes import Axes

    shown: list[Any] = []
    draw = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, pixels, **how: shown.append(pixels) or draw(self, pixels, **how))
    image = torch.full((1, 80, 80), 51, dtype=torch.uint8)
    draw_kept(image, {"two": torch.tensor([0, 99])}, (10, 10), tmp_path / "kept.png", "title")
    whole, two = shown
    assert (whole == 0.2).all() and (tmp_path / "kept.png").stat().st_size > 1000
    middles = two[24::48, 24::48, 0]
    assert middles.shape == (10, 10) and middles[0, 0] == middles[9, 9] == pytest.approx(0.2)
    assert (middles > 0.8).sum() == 98
