"""Masks that a model makes outside of its language model: windows of any width count places of the whole prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from by_hand import by_divprune, by_hand, greedy, logits_of
from prompt_rows import paligemma
from prompt_rows._gemma import pairs
from prompting import BY_NAME, PROMPTS, TEXT, Row, fresh, generate, held, new, shared
from torch import Tensor

from tokenreduce import patch

GEMMA, PALI, STEPS, NEAR = BY_NAME["gemma3"], BY_NAME["paligemma"], 5, 1e-5


def with_window(window: int) -> tuple[Row, Any]:
    """The row and its model with windows of this width."""

    def masks(places: Tensor, blocks: Tensor) -> dict[str, Tensor]:
        return {"full_attention": pairs(places, blocks), "sliding_attention": pairs(places, blocks, window)}

    model = fresh(GEMMA)
    for config in (model.config.get_text_config(), model.model.language_model.config):
        config.sliding_window = window
    return replace(GEMMA, masks=masks), model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("window", [3, 21, 512])
def test_windows(window: int, positions: str, implementation: str) -> None:
    row, model = with_window(window)
    unpatched = with_window(window)[1]
    check(row, patch(model, "divprune", keep=0.25, positions=positions), unpatched, positions == "renumber")


def check(row: Row, model: Any, unpatched: Any, renumber: bool) -> None:
    """Answers, logits and entries of a batch are those of its prompts, deleted by hand."""
    out = generate(model, row.inputs(PROMPTS), STEPS)
    left = [by_hand(unpatched, row, p, 0.25, by_divprune, renumber) for p in PROMPTS]
    for i, sequence in enumerate(left):
        ids, logits = greedy(unpatched, sequence, STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= NEAR
    rows = max(len(sequence.rows) for sequence in left) + STEPS - 1
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [
        held(layer, rows) for layer in out.past_key_values.layers
    ]


def test_windows_matter() -> None:
    """So that an oracle that has none would be noticed."""
    row, model = with_window(3)
    sequence = by_hand(model, row, PROMPTS[1], 0.25, by_divprune)
    other = replace(sequence, masks=GEMMA.masks)
    assert (greedy(model, sequence, 1)[1] - greedy(model, other, 1)[1]).abs().max() > 0.01


def test_windows_of_paligemma_2() -> None:
    """Tokens of the prompt see each other also beyond a window."""
    window = 7

    def masks(places: Tensor, blocks: Tensor) -> dict[str, Tensor]:
        near = pairs(places, blocks, window) | pairs(places, blocks) & (blocks[:, None] + blocks[None] == 0)
        return {"full_attention": pairs(places, blocks), "sliding_attention": near}

    more = {"sliding_window": window, "final_logit_softcapping": None, "attn_logit_softcapping": None}
    row = replace(PALI, masks=masks)
    model, unpatched = (new(replace(row, build=partial(paligemma.build, hf.Gemma2Config, **more))) for _ in "ab")
    check(row, patch(model, "divprune", keep=0.25), unpatched, True)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_language_model_with_masks_of_its_own_counts_rows(name: str) -> None:
    """Its windows are what they are in the shorter prompt."""

    def build() -> Any:
        model = BY_NAME[name].build()
        config = model.config.to_dict() | {"text_config": hf.MistralConfig(**TEXT, sliding_window=9).to_dict()}
        return type(model)(type(model.config).from_dict(config))

    row = replace(BY_NAME[name], build=build)
    model, unpatched = new(row), new(row)
    check(row, patch(model, "divprune", keep=0.25), unpatched, True)


def test_a_prompt_without_types_is_as_the_model_reads_it() -> None:
    """With sdpa words of one prompt see each other where no mask says that they do not, with eager they do not."""
    given = PALI.inputs([PROMPTS[1]])
    del given["token_type_ids"]
    for implementation, blocks in (("sdpa", PALI.blocks), ("eager", GEMMA.blocks)):
        model = fresh(PALI)
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found = patch(model, "divprune", keep=0.25)(**given).logits[0, -1]
            left = by_hand(
                shared("paligemma"),
                replace(PALI, blocks=lambda ids, b=blocks: [b([0])[0]] * len(ids)),
                PROMPTS[1],
                0.25,
                by_divprune,
                True,
            )
            assert (found - logits_of(shared("paligemma"), left)[-1]).abs().max() <= NEAR


def test_a_later_image_of_a_prompt_that_sees_itself() -> None:
    model, given = patch(fresh(PALI), "divprune", keep=0.25), PALI.inputs([PROMPTS[0]])
    with torch.no_grad():
        cache = model(**given, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="PaliGemma lets the tokens of a later prompt see each other only if"):
        model(**given | {"attention_mask": None}, past_key_values=cache)


def test_one_prompt_is_decoded_without_masks() -> None:
    """As in the unpatched model, as long as no window has moved on."""
    seen: list[Any] = []
    model = patch(with_window(512)[1], "divprune", keep=0.25)
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(lambda m, a, given: seen.append(given["attention_mask"]), with_kwargs=True)
    generate(model, GEMMA.inputs([PROMPTS[1]]), 3)
    assert [mask is None for mask in seen] == [False] * 3 + [True] * 6


def test_a_full_window_that_cannot_be_cropped() -> None:
    """What transformers refuses leaves the cache as it was."""
    model, given = patch(fresh(GEMMA), "divprune", keep=0.25), GEMMA.inputs([PROMPTS[1]])
    with torch.no_grad():
        cache = model(**given, use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="does not track past states"):
            cache.crop(-2)
        assert cache.get_seq_length() == given["input_ids"].shape[1]
        word, whole = torch.tensor([[5]]), patch(fresh(GEMMA), "divprune", keep=0.25)(**given, use_cache=True)
        expected = model(input_ids=word, past_key_values=whole.past_key_values).logits
        assert torch.equal(model(input_ids=word, past_key_values=cache).logits, expected)
