"""Timing of answers: which rows there are and what they say of rows and bytes; no time is asserted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prompting import BY_NAME, fresh, shared

from tokenreduce import patch, report
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.shipped.random_llava import random_llava
from tokenreduce.lab.shipped.vision_language import handmade_inputs
from tokenreduce.lab.speed.answering import Answering, bytes_in, limit_of
from tokenreduce.lab.speed.generating import compare_answering
from tokenreduce.lab.speed.row_limit import prefill_limit, reduced_call

LLAVA = BY_NAME["llava"]
PROMPTS: tuple[Any, ...] = ((2, "a", 3), (1, "a", 2, "a", 1))
MS = ("encoder_ms", "prefill_ms", "ttft_ms", "ms_per_token")
SHARES = ("ttft_limit_share", "prefill_limit_share", "token_limit_share")


def small_llava() -> Any:
    return random_llava(width=64, depth=2, side=4, words=50)


def test_rows_of_two_prompts() -> None:
    model, told = fresh(LLAVA), []
    prompts = [LLAVA.inputs([prompt]) for prompt in PROMPTS]
    arms = [Arm("divprune", keep=0.25), Arm("fastv", keep={1: 2}), Arm("random", keep=1.0), Arm("topk", keep=0.5)]
    rows = compare_answering(
        model, prompts, arms, words=2, rounds=2, progress=lambda share, what: told.append((share, what))
    )
    names = ["unpatched", "divprune", "fastv", "random"] * 2
    assert [row["method"] for row in rows] == [*names, "topk"] and "topk" in rows[-1]["refused"]
    assert [row["images_per_prompt"] for row in rows[:-1]] == [1] * 4 + [2] * 4
    assert [row["places"] for row in rows[:-1]] == [21] * 4 + [36] * 4
    assert [row["tokens_left"] for row in rows[:-1]] == [16, 4, 2, 16, 32, 8, 4, 32]
    whole = 3 * 2 * 2 * 8 * 4 / 2**20  # layers, keys and values, heads, width of each, bytes
    left = [21, 9, (21 + 7 + 7) / 3, 21, 36, 12, (36 + 8 + 8) / 3, 36]
    assert [row["kv_mib"] for row in rows[:-1]] == pytest.approx([whole * n for n in left])
    assert [row["kv_share"] for row in rows[:4]] == pytest.approx([n / 21 for n in left[:4]])
    for row in rows[:-1]:
        assert all(row[key] > 0 for key in MS) and row["ttft_interval"][0] <= row["ttft_interval"][1]
        assert all((row[key] is None) == (row["method"] == "random") for key in SHARES)
    assert all(rows[0][key] == 1 for key in (*SHARES, "speedup", "prefill_share"))
    assert told[0][0] < 1 and told[-1][0] == 1
    given = LLAVA.inputs([PROMPTS[0]])
    assert torch.equal(model(**given).logits, shared("llava")(**given).logits)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_limit_is_called_with_the_rows_that_are_left(name: str) -> None:
    """It is the same language model on the same rows, so that it says the same."""
    row = BY_NAME[name]
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([PROMPTS[1]])
    with torch.inference_mode():
        one = Answering(model, given, 2)
        limit = limit_of(shared(name), one)
        cache, logits = prefill_limit(shared(name), limit.called, limit.rows)
        want = model(**given, logits_to_keep=1).logits
        one.steps()
        limit.steps()
    assert (logits - want).abs().max() <= 1e-5 and torch.equal(limit.word, one.word)
    assert bytes_in(cache) == one.kv_bytes < one.kv_bytes * given["input_ids"].shape[1] / report(model).rows[1]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_the_limit_has_as_many_rows_in_each_layer(name: str) -> None:
    row = BY_NAME[name]
    model, given = patch(fresh(row), "divprune", keep={0: 0.5, 1: 0.5, 2: 1}), row.inputs([PROMPTS[1]])
    with torch.inference_mode():
        one = Answering(model, given, 2)
        limit = limit_of(shared(name), one)
        limit.steps()  # of caches with unequal layers
        one.steps()
    rows = report(model).layer_rows
    assert rows[0] > rows[1] > rows[2] and tuple(layer.keys.shape[2] for layer in limit.cache.layers) == rows
    assert tuple(layer.keys.shape[2] for layer in one.cache.layers) == rows
    assert not any(layer._forward_pre_hooks for layer in shared(name).model.language_model.layers)


def test_where_nothing_left_or_masks_are_of_all_there_is_no_limit() -> None:
    model, given = fresh(LLAVA), LLAVA.inputs([PROMPTS[0]])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        for keep, there in (({0: 4}, True), ({1: 4}, False), ({0: 1.0}, False)):
            one = Answering(patch(model, "random", keep=keep), given, 1)
            assert (limit_of(model, one) is not None) == there


def test_words_are_taken_out_of_the_cache_again() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    with torch.inference_mode():
        one = Answering(model, given, 3)
        before = [layer.keys.clone() for layer in one.cache.layers]
        one.steps()
        assert all(torch.equal(layer.keys, x) for layer, x in zip(one.cache.layers, before, strict=True))
        called = reduced_call(model, one.encoded)
    assert called["inputs_embeds"].shape[1] == 9 and "past_key_values" not in called


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5"])
def test_every_layer_of_attention_holds_again_what_it_held(name: str) -> None:
    """Also where a window is full, and beside layers of linear attention, whose states go on."""
    row = BY_NAME[name]
    given = row.inputs([PROMPTS[0]])
    for model in (fresh(row), patch(fresh(row), "divprune", keep=0.5)):
        with torch.inference_mode():
            one = Answering(model, given, 3)
            layers = [layer for layer in one.cache.layers if getattr(layer, "keys", None) is not None]
            before = [(layer.keys.clone(), layer.values.clone(), layer.get_seq_length()) for layer in layers]
            length = one.cache.get_seq_length()
            one.steps()
            one.steps()
        assert layers and one.cache.get_seq_length() == length and bytes_in(one.cache) == one.kv_bytes
        for layer, (keys, values, seen) in zip(layers, before, strict=True):
            assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
            assert layer.get_seq_length() == seen


def test_windows_that_are_full_are_timed() -> None:
    row = BY_NAME["gemma3"]
    given = row.inputs([PROMPTS[0]])
    assert given["input_ids"].shape[1] > fresh(row).config.text_config.sliding_window
    rows = compare_answering(fresh(row), [given], [Arm("divprune", keep=0.5)], words=2, rounds=1)
    assert [row["tokens_left"] for row in rows] == [16, 8]


def test_random_llava_is_the_same_each_time_and_leaves_the_generator() -> None:
    state = torch.random.get_rng_state()
    one, other = small_llava(), small_llava()
    assert torch.equal(torch.random.get_rng_state(), state)
    given = handmade_inputs(one, 2, 7)
    assert given["input_ids"].shape == (1, 2 * 16 + 7) and len(given["pixel_values"]) == 2
    with torch.inference_mode():
        assert torch.equal(one(**given).logits, other(**given).logits)


def test_what_does_not_fit_is_refused() -> None:
    model, given = fresh(LLAVA), LLAVA.inputs([PROMPTS[0]])
    arm = Arm("divprune", keep=0.5)
    with pytest.raises(InvalidValueError, match="words is 0"):
        compare_answering(model, [given], [arm], words=0)
    with pytest.raises(InvalidValueError, match="LlavaModel has no head"):
        compare_answering(model.model, [given], [arm])
    with pytest.raises(InvalidValueError, match="one prompt with its images"):
        compare_answering(model, [LLAVA.inputs([(3,)])], [arm])
    with pytest.raises(InvalidValueError, match="one prompt with its images"):
        compare_answering(model, [LLAVA.inputs([*PROMPTS])], [arm])
    with pytest.raises(InvalidValueError, match="cannot run before the language model"):
        compare_answering(model, [given], [Arm("topk", keep=0.5)])
