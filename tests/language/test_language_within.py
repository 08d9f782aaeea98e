"""Tokens that leave within the language model, against a loop over unpatched layers at full length, in which masks hide
each token from the layers behind its removal."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from by_hand import by_divprune, extended, units_of
from by_masks import ByMasks
from prompting import BY_NAME, PROMPTS, Prompt, Row, fresh, generate, shared
from prompting import ROWS as EVERY
from torch import Tensor

from tokenreduce import compatible, count_flops, load_patch, patch, report, save_patch, unpatch

ROWS = [row for row in EVERY if row.within]
STEPS, NEAR = 5, 1e-5
some_families = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]
STAGES: dict[str, Any] = {
    "fastv": 0.5,
    "pyramiddrop": 0.5,
    "divprune": {0: 0.5, 1: 0.75, 2: 0.5},
    "random": {1: 5},
}
LAYERS: dict[str, Any] = {"fastv": {2: 0.5}, "pyramiddrop": {1: 0.5, 2: 0.5}}


def by_text(rows: Tensor, attention: Tensor, count: int) -> list[int]:
    return sorted(attention.topk(count).indices.tolist())


def by_divprune_rows(rows: Tensor, attention: Any, count: int) -> list[int]:
    return by_divprune(rows, count, None)[0] if count < len(rows) else list(range(len(rows)))


CHOOSE: dict[str, Any] = {"fastv": by_text, "pyramiddrop": by_text, "divprune": by_divprune_rows}


def rows_of_layers(row: Row, prompt: Prompt, stages: dict[int, Any]) -> list[int]:
    """Rows of one prompt in each layer."""
    counts, words = [len(places) for places, _ in units_of(row, prompt)], len(row.ids(prompt))
    text, found = words - sum(counts), []
    for layer in range(3):
        keep = stages.get(layer, 1.0)
        counts = [max(1, int(n * keep + 1e-9)) if isinstance(keep, float) else min(n, keep) for n in counts]
        found.append(text + sum(counts))
    return found


@some_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("method", CHOOSE)
def test_as_with_masks_at_full_length(row: Row, method: str, implementation: str) -> None:
    model = fresh(row)
    model.set_attn_implementation(implementation)
    patch(model, method, keep=STAGES[method])
    stages = LAYERS.get(method, STAGES[method])
    out = generate(model, row.inputs(PROMPTS), STEPS)
    for i, prompt in enumerate(PROMPTS):
        ids, logits = ByMasks(row, prompt, stages, CHOOSE[method]).greedy(STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= NEAR
    most = [max(counts) for counts in zip(*(rows_of_layers(row, p, stages) for p in PROMPTS), strict=True)]
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == [n + STEPS - 1 for n in most]
    assert out.past_key_values.get_seq_length() == row.inputs(PROMPTS)["input_ids"].shape[1] + STEPS - 1


@some_families
def test_every_place_shows_the_last_that_stayed(row: Row) -> None:
    """Shapes stay, and layers before the first stage are those of the unpatched model."""
    given = row.inputs(PROMPTS)
    with torch.no_grad():
        out = patch(fresh(row), "fastv", keep=0.5)(**given, output_hidden_states=True)
        expected = shared(row.name)(**given, output_hidden_states=True)
    real = given["attention_mask"].bool()
    for layer, (states, before) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
        assert states.shape == before.shape
        if layer <= 2:
            assert (states - before)[real].abs().max() <= NEAR
    assert out.logits.shape == expected.logits.shape
    assert (out.logits - expected.logits)[real].abs().max() > 0.01


@some_families
@pytest.mark.parametrize("method", ["fastv", "divprune"])
def test_beams_and_batches(row: Row, method: str) -> None:
    model = patch(fresh(row), method, keep=STAGES[method])
    for way in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        alone = [generate(model, row.inputs([p]), STEPS, **way).sequences[:, -STEPS:].tolist() for p in PROMPTS]
        together = generate(model, row.inputs(PROMPTS), STEPS, **way).sequences[:, -STEPS:].tolist()
        assert together == [answer for answers in alone for answer in answers]


@some_families
def test_turns_of_text(row: Row) -> None:
    """What the first prompt decided stays decided."""
    prompt: Prompt = (2, "a", 3)
    model = patch(fresh(row), "fastv", keep=0.5)
    oracle = ByMasks(row, prompt, {2: 0.5}, by_text)
    out = generate(model, row.inputs([prompt]), 3)
    assert out.sequences[0, -3:].tolist() == oracle.greedy(3)[0]
    ids = torch.cat([out.sequences, torch.tensor([[11, 12]])], 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": out.past_key_values}
    again = generate(model, given, 4)
    for word in (11, 12):
        oracle.sequence = extended(oracle.model, oracle.sequence, word)
    expected, logits = oracle.greedy(4)
    assert again.sequences[0, -4:].tolist() == expected and (torch.cat(again.logits) - logits).abs().max() <= NEAR


def test_an_image_after_a_turn_of_text() -> None:
    """The last word attends to the turn before, too, which is no image."""
    prompt: Prompt = (4, "a", 3)
    model, given = patch(fresh(LLAVA), "fastv", keep=0.5), LLAVA.inputs([prompt])
    ids = given["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        more = {"pixel_values": given["pixel_values"], "past_key_values": cache}
        logits = model(input_ids=ids[:, 4:], **more).logits[0, -1]
    assert (logits - ByMasks(LLAVA, prompt, {2: 0.5}, by_text).logits()).abs().max() <= NEAR


def test_later_turns_of_a_batch_equal_those_of_its_prompts_alone() -> None:
    """With padding, fillers in later layers and a new image."""
    model, prompts = patch(fresh(LLAVA), "divprune", keep={0: 0.5, 2: 0.5}), [(2, "a", 3), (1, "a", 2, "a", 2), (6,)]

    def talk(some: list[Prompt]) -> list[list[int]]:
        given = LLAVA.inputs(some)
        out = generate(model, given, 3)
        second = LLAVA.inputs([(1, "a", 2)] * len(some), seed=7)
        ids = torch.cat([out.sequences, second["input_ids"]], 1)
        mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, given["input_ids"].shape[1] :])], 1)
        asked = {"input_ids": ids, "attention_mask": mask, "pixel_values": second["pixel_values"]}
        again = generate(model, asked | {"past_key_values": out.past_key_values}, 4)
        return again.sequences[:, -4:].tolist()

    assert talk(prompts) == [talk([prompt])[0] for prompt in prompts]


def test_nothing_to_remove_changes_nothing() -> None:
    given = LLAVA.inputs(PROMPTS)
    with torch.no_grad():
        expected = shared("llava")(**given).logits
        for method, keep in (("fastv", 1.0), ("pyramiddrop", 1.0), ("divprune", {0: 1.0, 2: 1.0}), ("fastv", 16)):
            assert torch.equal(patch(fresh(LLAVA), method, keep=keep)(**given).logits, expected)


def test_caches_are_copied_pickled_cropped_and_reordered() -> None:
    model, prompt = patch(fresh(LLAVA), "divprune", keep={1: 0.5}), (1, "a", 2, "a", 4)
    with torch.no_grad():
        cache = model(**LLAVA.inputs([prompt]), use_cache=True).past_key_values
    written = io.BytesIO()
    torch.save(cache, written)
    written.seek(0)

    def ask(cache: Any) -> Tensor:
        with torch.no_grad():
            return model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits

    expected = ask(copy.deepcopy(cache))
    assert torch.equal(ask(torch.load(written, weights_only=False)), expected)
    twice = copy.deepcopy(cache)
    ask(twice)
    twice.crop(-1)
    twice.batch_repeat_interleave(2)
    twice.reorder_cache(torch.tensor([1]))
    assert torch.allclose(ask(twice), expected, atol=1e-6)


@pytest.mark.parametrize("then", [{"keep": 0.5}, {"keep": {1: 0.5}}, {"keep": {0: 0.5, 2: 0.5}}], ids=str)
def test_a_cache_of_another_patch(then: dict[str, Any]) -> None:
    """What it holds is told by layers and positions; how many tokens stay does not matter."""
    model = patch(fresh(LLAVA), "divprune", keep={2: 0.25})
    cache = generate(model, LLAVA.inputs([PROMPTS[0]])).past_key_values
    patch(model, "divprune", **then)
    if then["keep"] == {0: 0.5, 2: 0.5}:
        assert torch.isfinite(model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits).all()
        return
    with pytest.raises(
        ValueError, match="this cache was filled with positions='keep' and tokens leaving before layers"
    ):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_multiply_adds_are_counted() -> None:
    given = LLAVA.inputs(PROMPTS)
    full = count_flops(shared("llava"), given)
    for method, keep in (("divprune", 0.25), ("fastv", 0.5), ("fastervlm", 0.25), ("fopru", 0.25), ("random", 0.25)):
        less = count_flops(patch(fresh(LLAVA), method, keep=keep), given)
        assert less.total < full.total and (less.reducer > 0) == (method != "random")


def test_unpatching_and_copies() -> None:
    model = fresh(LLAVA)
    config = model.model.language_model.config
    patch(model, "fastv", keep=0.5)
    attention = model.model.language_model.layers[1].self_attn
    assert attention.config is not config and attention.config._attn_implementation == "tokenreduce"
    other = copy.deepcopy(model)
    given = LLAVA.inputs(PROMPTS)
    assert torch.equal(generate(other, given).sequences, generate(model, given).sequences)
    unpatch(model)
    assert all(layer.self_attn.config is config for layer in model.model.language_model.layers)
    assert not [key for m in model.modules() for key in vars(m) if "tokenreduce" in key]
    assert torch.equal(generate(model, given).logits[0], generate(shared("llava"), given).logits[0])


def test_reports_and_files(tmp_path: Any) -> None:
    model = patch(fresh(LLAVA), "divprune", keep={0: 0.5, 2: 3})
    generate(model, LLAVA.inputs(PROMPTS))
    shown = report(model)
    assert shown.to_json()["tokens"] == [24, 24, 9] and shown.units == ((16, 3),) * 3
    assert "9 are left at the end" in str(shown)
    save_patch(model, tmp_path / "patch.json")
    again = load_patch(fresh(LLAVA), tmp_path / "patch.json")
    assert report(again).keep == {0: 0.5, 2: 3}


@pytest.mark.parametrize(
    ("method", "keep", "sentence"),
    [
        ("fastv", {0: 0.5}, "fastv reads the attention of the layer before, and layer 0 has none"),
        ("divprune", {3: 0.5}, "layer 3 does not exist: the language model has layers 0 to 2"),
        ("divprune", {1: 1.5}, r"keep is 1\.5; as a share it lies in"),
        ("divprune", {}, "keep names no layer"),
    ],
)
def test_stages_that_are_none(method: str, keep: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        patch(fresh(LLAVA), method, keep=keep)


@some_families
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "todre"])
def test_who_reads_text_drafts_no_words_and_keeps_a_cache(row: Row, method: str) -> None:
    """Also where every drafted word is right, so that none is taken back: the last of them would have decided."""
    model, given = patch(fresh(row), method, keep=0.5), row.inputs([PROMPTS[1]])
    drafting = ({"prompt_lookup_num_tokens": 3}, {"assistant_model": patch(fresh(row), "random", keep=0.25)})
    for way in (*drafting, {"assistant_model": patch(fresh(row), method, keep=0.5)}):
        with pytest.raises(ValueError, match="the last of them decided which tokens of images left"):
            generate(model, given, **way)
    with pytest.raises(ValueError, match=f"without a cache {method} would let the newest word decide what leaves"):
        generate(model, given, use_cache=False)
    with torch.no_grad():
        assert torch.equal(model(**given, use_cache=False).logits, model(**given).logits)
    patch(model, method, keep=1.0)
    assert generate(model, given, use_cache=False).sequences.shape == (1, given["input_ids"].shape[1] + 5)


def test_words_after_a_prompt_may_be_taken_back() -> None:
    """As `generate` does where it looks one step late whether all have ended: it says so behind the prompt."""
    model, given = patch(fresh(LLAVA), "fastv", keep=0.5), LLAVA.inputs([PROMPTS[1]])
    with torch.no_grad():
        first, second = (model(**given, use_cache=True).past_key_values for _ in "ab")
        first.activate_past_recording()
        first.crop(0)
        with pytest.raises(ValueError, match="the last of them decided"):
            first.crop(-1)
        with pytest.raises(ValueError, match="the last of them decided"):
            second.crop(0)
        word = {"input_ids": torch.tensor([[5]])}
        expected = model(**word, past_key_values=second).logits
        second.crop(0)
        second.crop(-1)
        assert torch.equal(model(**word, past_key_values=second).logits, expected)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="have been rotated to their positions already"):
        patch(fresh(LLAVA), "fastv", keep=0.5, positions="renumber")
    others = [row for row in EVERY if not row.within]
    assert {"qwen3_vl", "qwen3_5", "gemma3"} <= {row.name for row in others}
    for row in others:
        with pytest.raises(ValueError, match="tokens leave only before the language model of this family"):
            patch(fresh(row), "divprune", keep={2: 0.5})
        assert "fastv" not in compatible(shared(row.name)).language
    model, given = patch(fresh(LLAVA), "fastv", keep=0.5), LLAVA.inputs([PROMPTS[1]])
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="another attention implementation after it was patched"):
        generate(model, given)
    model = patch(fresh(LLAVA), "fastv", keep=0.5).train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing runs layers again"):
        model(**given)
