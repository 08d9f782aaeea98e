"""Answers word by word: forced ones against a loop over whole prompts, divergences by hand, rows of an evaluation."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, shared
from torch import Tensor

from tokenreduce import patch
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.asked import load_asked
from tokenreduce.lab.quality.forced import Said, compare_words, forced, greedy, until_the_end
from tokenreduce.lab.quality.vision_language import measure_answers
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SceneProcessor
from tokenreduce.lab.shipped.vision_language import Placed, Prompted

LLAVA = BY_NAME["llava"]


def ready(row: Row) -> dict[str, Tensor]:
    return row.inputs([*PROMPTS])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_model_that_is_made_to_say_its_own_answer(row: Row) -> None:
    model = shared(row.name)
    own = greedy(model, ready(row), 4)
    again = forced(model, ready(row), own)
    kl, alike = compare_words(own, again)
    assert torch.equal(again, own.logits) and own.real.all()
    assert kl.tolist() == [0, 0, 0] and alike.tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_the_prompt_alone_decides_what_leaves(method: str) -> None:
    """The forced answer of a patched model is one word after the other, as `generate` says them."""
    model, given = patch(fresh(LLAVA), method, keep=0.25), ready(LLAVA)
    own = greedy(shared("llava"), given, 4)
    logits = forced(model, given, own)
    with torch.inference_mode():
        mask = given["attention_mask"]
        places = mask.sum(1, keepdim=True)
        out = model(**given, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=True)
        steps = [out.logits[:, -1]]
        for word in range(3):
            mask = torch.cat([mask, mask.new_ones(3, 1)], 1)
            more = {"attention_mask": mask, "position_ids": places + word, "past_key_values": out.past_key_values}
            out = model(input_ids=own.ids[:, word : word + 1], **more)
            steps.append(out.logits[:, -1])
    assert (torch.stack(steps, 1) - logits).abs().max() <= 1e-5
    kl, alike = compare_words(own, logits)
    assert (kl[:2] > 1e-4).all() and kl[2].abs() < 1e-9 and alike[2] == 1  # the third has no image


def test_divergence_by_hand() -> None:
    """Two words, of which the second is behind the end; log 4 / 3 where a half and a half become three and one."""
    own = Said(torch.tensor([[0, 1]]), torch.zeros(1, 2, 2), torch.tensor([[True, False]]))
    other = torch.tensor([[[math.log(3), 0.0], [5.0, -5]]])
    kl, alike = compare_words(own, other)
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert alike.item() == 1
    hidden = own._replace(logits=torch.tensor([[[0.0, -math.inf], [0, 0]]]))
    assert compare_words(hidden, other)[0].item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_words_until_the_end() -> None:
    ids = torch.tensor([[5, 2, 0, 2], [1, 1, 1, 1], [3, 9, 9, 9]])
    assert until_the_end(ids, [2, 3]).tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert until_the_end(ids, 9).sum().item() == 4 + 4 + 2 and until_the_end(ids, None).all()


def test_an_answer_that_ends_early() -> None:
    model = fresh(LLAVA)
    model.generation_config.pad_token_id = 0
    first = greedy(model, ready(LLAVA), 3).ids
    model.generation_config.eos_token_id = int(first[1, 0])
    own = greedy(model, ready(LLAVA), 3)
    assert own.real[1].tolist() == [True, False, False]
    kl, _ = compare_words(own, forced(model, ready(LLAVA), own))
    assert kl.tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def scenes_asked() -> Any:
    torch.manual_seed(0)
    model = scene_vlm(pretrained=False)
    return Prompted(model, Placed(SceneProcessor(), model)), load_asked("scenes", limit=2)


def test_rows(scenes_asked: Any) -> None:
    prompted, asked = scenes_asked
    arms = [Arm("divprune", keep=0.25), Arm("random", keep=1.0), Arm("globalcom2", keep=0.5)]
    told: list[float] = []
    rows = measure_answers(
        prompted, arms, asked, batch_size=3, words=2, progress=lambda share, what: told.append(share)
    )
    assert [row["method"] for row in rows] == ["unpatched", "divprune", "random", "globalcom2"]
    assert "refused" in rows[3] and told[-1] == 1
    plain, some, whole = rows[:3]
    assert plain["kl"] == whole["kl"] == 0 < some["kl"] and plain["kv_share"] == whole["kv_share"] == 1
    assert plain["top1_agreement"] == whole["top1_agreement"] == 1 and some["kv_share"] < 0.4
    assert whole["exact"] == plain["exact"] and whole["change"] == plain["change"] == 0
    assert some["change"] == pytest.approx(some["exact"] - plain["exact"]) and some["images"] == 2
    alone = measure_answers(prompted, arms[:1], asked, batch_size=1, words=2)
    assert alone[1]["kl"] == pytest.approx(some["kl"], rel=1e-3)
    unknown = measure_answers(prompted, arms[:1], asked._replace(answers=None), words=2)
    assert "exact" not in unknown[0] and unknown[1]["kl"] == pytest.approx(some["kl"], rel=1e-3)


def test_right_answers_are_counted(scenes_asked: Any) -> None:
    """Where the model's own answers are the right ones, with an article before, all are exact."""
    prompted, asked = scenes_asked
    inputs = prompted.processor(images=asked.images, text=asked.text)
    texts = prompted.processor.batch_decode(greedy(prompted.model, inputs, 2).ids)
    right = asked._replace(answers=[[f"The {text}!"] for text in texts])
    rows = measure_answers(prompted, [Arm("random", keep=1.0)], right, words=2)
    assert rows[0]["exact"] == rows[1]["exact"] == 1 and rows[0]["exact_interval"] == (1, 1)


class Named:
    """A processor whose questions are names of prompts."""

    prompts: ClassVar[dict[str, Any]] = {"a picture": (2, "a", 3), "no picture": (6,)}

    def __call__(self, images: Any, text: list[str]) -> dict[str, Tensor]:
        return LLAVA.inputs([self.prompts[name] for name in text])

    def batch_decode(self, ids: Tensor) -> list[str]:
        return [str(row) for row in ids.tolist()]


def test_a_batch_that_loses_nothing_counts_its_own_bytes() -> None:
    """Of 16 tokens of the picture 4 are left; the words around it, and those of the other prompt, stay."""
    asked = load_asked("scenes", limit=1)
    asked = asked._replace(images=[None] * 2, text=[*Named.prompts], answers=None, of_image=torch.tensor([0, 1]))
    prompted, arms = Prompted(fresh(LLAVA), Named()), [Arm("divprune", keep=0.25), Arm("divprune", keep=1.0)]
    rows = measure_answers(prompted, arms, asked, batch_size=1, words=2)
    assert [row["kv_share"] for row in rows] == pytest.approx([1, (5 + 4 + 6) / (5 + 16 + 6), 1])


def test_a_model_without_words_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="knows no words"):
        measure_answers(Prompted(shared("llava")), [Arm("random", keep=0.5)], load_asked("scenes", limit=1))
