"""The vision-language model that ships: its classes, its size, and that it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenreduce.patches.vision_language import llava

from tokenreduce import compatible, patch
from tokenreduce.lab.data import scene_questions, scenes
from tokenreduce.lab.quality.answers import answer, hits
from tokenreduce.lab.shipped import scene_vlm as shipped
from tokenreduce.lab.shipped.scene_words import IMAGE, WORDS, SceneProcessor

PROCESSOR = SceneProcessor()


def exact(model: Any, count: int = 100) -> float:
    """The share of right answers to four questions about each scene of test photographs."""
    made = scenes.load(count, seed=7)
    asked = [question for some in scene_questions.ask_all(made, 4, 7) for question in some]
    images = made.images.repeat_interleave(4, 0)
    said = answer(model, PROCESSOR, images, [question.text for question in asked], max_new_tokens=3)
    return hits(said.texts, [[question.answer] for question in asked]).mean().item()


def test_it_is_made_of_classes_that_everybody_has(tmp_path: Path) -> None:
    model = shipped.scene_vlm()
    parts = model.model
    assert type(model) is hf.LlavaForConditionalGeneration and not model.training
    assert type(parts.vision_tower) is hf.CLIPVisionModel and type(parts.language_model) is hf.LlamaModel
    assert 1.2e6 < sum(p.numel() for p in model.parameters()) < 1.8e6
    assert shipped.FILE.stat().st_size <= 6e6
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = PROCESSOR(images=scenes.load(2).images, text=["where is the bag ?", "are there any shoes ?"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_it_is_right() -> None:
    """On few scenes, so with a margin; the model card has the figure of many."""
    assert exact(shipped.scene_vlm()) > 0.92
    assert exact(shipped.scene_vlm(pretrained=False), 10) < 0.2


def test_fewer_tokens_and_what_can_be_asked_of_it() -> None:
    model = shipped.scene_vlm()
    fits = compatible(model).language
    assert {"divprune", "fastervlm", "fastv", "random"} <= set(fits)
    assert llava.ADAPTER.side(model.model) == 10
    whole = exact(model, 50)
    half, tenth = (exact(patch(shipped.scene_vlm(), "divprune", keep=keep), 50) for keep in (0.5, 0.05))
    assert whole >= half - 0.05 and half > tenth + 0.1, "it needs its tokens"


def test_inputs() -> None:
    inputs = PROCESSOR(images=scenes.load(2).images, text=["where is the bag ?", "what is left of the shoe ?"])
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {
        "input_ids": (2, 108),
        "attention_mask": (2, 108),
        "pixel_values": (2, 1, 80, 80),
    }
    assert (inputs["input_ids"] == WORDS.index(IMAGE)).sum(1).tolist() == [100, 100]
    assert inputs["attention_mask"][0].tolist() == [0, 0] + [1] * 106, "padded on the left"
    assert PROCESSOR.batch_decode(inputs["input_ids"]) == ["where is the bag ?", "what is left of the shoe ?"]


def test_words_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="does not know the word 'hat'"):
        PROCESSOR(images=scenes.load(1).images, text=["where is the hat ?"])
