"""Every way of generating equals the same way on prompts that were deleted by hand, or plain greedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import by_divprune, by_hand, drawn, extended, greedy, logits_of
from prompting import BY_NAME, OF_IMAGES, PROMPTS, ROWS, WORDS, Prompt, Row, fresh, generate, shared
from transformers import TextStreamer

from tokenreduce import patch

STEPS, NEAR = 5, 1e-5
every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
two_families = pytest.mark.parametrize("row", [BY_NAME["llava"], BY_NAME["qwen2_5_vl"]], ids=lambda row: row.name)
# Embeddings alone do not tell others their masks, or what inner layers of the tower add.
embedded = [row for row in ROWS if not row.masks and row.name != "qwen3_vl"]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "several samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True, "top_k": 0},
}


def ask(model: Any, given: dict[str, Any], **way: Any) -> list[list[int]]:
    """The new words of each answer."""
    torch.manual_seed(5)
    asked = {"do_sample": False, "max_new_tokens": STEPS, "min_new_tokens": STEPS} | way
    return model.generate(**given, **asked)[:, -STEPS:].tolist()


def deleted(row: Row, prompt: Prompt) -> dict[str, Any]:
    """Arguments of `generate` for an unpatched model: embeddings of what is left."""
    left = by_hand(shared(row.name), row, prompt, 0.25, by_divprune, not row.rotates_in_3d)
    n = len(left.rows)
    given = {"inputs_embeds": left.rows[None], "attention_mask": torch.ones(1, n, dtype=torch.long)}
    if row.rotates_in_3d:
        given["position_ids"] = torch.cat([torch.arange(n)[None, None], left.positions[:, None]])
    return given


@pytest.mark.parametrize("row", embedded, ids=lambda row: row.name)
@pytest.mark.parametrize("way", WAYS)
def test_as_on_prompts_deleted_by_hand(row: Row, way: str) -> None:
    model = patch(fresh(row), "divprune", keep=0.25)
    for prompt in PROMPTS[:2]:
        expected = ask(shared(row.name), deleted(row, prompt), **WAYS[way])
        assert ask(model, row.inputs([prompt]), **WAYS[way]) == expected


@every_family
def test_sampling(row: Row) -> None:
    """Word by word, by chance."""
    model = patch(fresh(row), "divprune", keep=0.25)
    for prompt in PROMPTS[:2]:
        left = by_hand(shared(row.name), row, prompt, 0.25, by_divprune, not row.rotates_in_3d)
        torch.manual_seed(5)
        expected = greedy(shared(row.name), left, STEPS, drawn)[0]
        assert ask(model, row.inputs([prompt]), **WAYS["sampling"]) == [expected]
        assert expected != greedy(shared(row.name), left, STEPS)[0]


@every_family
@pytest.mark.parametrize("way", ["beams", "several beams"])
def test_beams_in_a_batch(row: Row, way: str) -> None:
    """Beams take over each other's caches, and prompts have different numbers of images."""
    model = patch(fresh(row), "divprune", keep=0.25)
    alone = [answer for prompt in PROMPTS for answer in ask(model, row.inputs([prompt]), **WAYS[way])]
    assert ask(model, row.inputs(PROMPTS), **WAYS[way]) == alone


def beams_by_hand(row: Row, prompt: Prompt, beams: int) -> tuple[list[list[int]], torch.Tensor]:
    """The words of the best beams and their mean log-probabilities, by full forwards over what is left; nothing ends
    before it is as long as the others."""
    model = shared(row.name)
    left = by_hand(model, row, prompt, 0.25, by_divprune, not row.rotates_in_3d)
    alive: list[tuple[float, list[int], Any]] = [(0.0, [], left)]
    for _ in range(STEPS):
        longer = []
        for score, words, sequence in alive:
            with torch.no_grad():
                shares = logits_of(model, sequence)[-1].log_softmax(-1)[:WORDS].topk(beams)
            for share, word in zip(shares.values.tolist(), shares.indices.tolist(), strict=True):
                longer.append((score + share, [*words, word], sequence))
        best = sorted(longer, key=lambda beam: -beam[0])[:beams]
        alive = [(score, words, extended(model, sequence, words[-1])) for score, words, sequence in best]
    return [words for _, words, _ in alive], torch.tensor([score / STEPS for score, _, _ in alive])


@every_family
def test_beams_equal_a_search_by_hand(row: Row) -> None:
    """Also where the masks of each beam are made outside of the language model."""
    model = patch(fresh(row), "divprune", keep=0.25)
    for prompt in PROMPTS[:2]:
        more = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
        out = generate(model, row.inputs([prompt]), STEPS, **more)
        words, scores = beams_by_hand(row, prompt, 3)
        assert out.sequences[:, -STEPS:].tolist() == words
        assert (out.sequences_scores - scores).abs().max() <= NEAR


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "qwen3_5"], ids=lambda row: row.name)
def test_drafted_words(row: Row) -> None:
    """Words that were drafted are taken back out of the cache."""
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([PROMPTS[1]])
    expected = ask(model, given)
    assert ask(model, given, prompt_lookup_num_tokens=3) == expected
    for assistant in (shared(row.name), patch(fresh(row), "divprune", keep=0.5)):
        assert ask(model, given, assistant_model=assistant) == expected
    assert ask(patch(fresh(row), "random", keep=0.25), given, assistant_model=model) == ask(
        patch(fresh(row), "random", keep=0.25), given
    )


@two_families
def test_a_streamer_sees_every_word(row: Row) -> None:
    class Words(TextStreamer):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            self.seen.append(-1)

    words, given = Words(), row.inputs([PROMPTS[0]])
    answer = ask(patch(fresh(row), "divprune", keep=0.25), given, streamer=words)[0]
    assert words.seen == [*given["input_ids"][0].tolist(), *answer, -1]


@every_family
def test_features_that_were_encoded_before(row: Row) -> None:
    """By the patched model: what `generate` itself hands on."""
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([PROMPTS[1]])
    expected = generate(model, given)
    more = {name: given[name] for name in OF_IMAGES & given.keys()}
    encoded = model.get_image_features(given["pixel_values"], **more, return_dict=True)
    given = {name: value for name, value in given.items() if name != "pixel_values"} | {
        "mm_encoder_outputs": {"image": encoded}
    }
    assert torch.equal(generate(model, given).sequences, expected.sequences)
