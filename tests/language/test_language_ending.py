"""All tokens of images leave a prompt late in the language model, once text does not read them, against the loop with
masks at full length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_masks import ByMasks
from prompting import BY_NAME, PROMPTS, Prompt, Row, fresh, generate, shared
from tokenreduce.patches.vision_language import _layers

from tokenreduce import compatible, patch, plan, report
from tokenreduce.reducers.contract import Ending

ROWS = [row for row in BY_NAME.values() if row.within and row.name != "internvl"]  # whose class attention is its own
STEPS, NEAR, LAYER = 5, 1e-5, 2
LLAVA = BY_NAME["llava"]
some_families = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


class WithEnding(ByMasks):
    """`todre` keeps half before the language model; before layer 2 all may leave."""

    def __init__(self, row: Row, prompt: Prompt, threshold: float) -> None:
        self.threshold = threshold
        self.row, self.flow = row, (2.0, 2.0)
        super().__init__(row, prompt, {0: 0.5, LAYER: None}, None)
        self.class_attention = iter(class_attention(row, prompt))

    def plan(self, layer: int, rows: Any, attention: Any, alive: list[bool]) -> None:
        visual = {place for places in self.units for place in places}
        if layer == 0:
            self.images = visual
            self.choose = lambda x, _, count: chosen(x, next(self.class_attention), count)
            return super().plan(layer, rows, attention, alive)
        text = [i for i in range(len(alive)) if i not in self.images]
        seen = self.map[:, sorted(visual)].sum(1).tolist()
        if visual and text:
            to_images = sum(seen[i] for i in text) / len(text)
            self.flow = (to_images, sum(1 - seen[i] for i in visual) / len(visual))
        self.gone[LAYER] = visual if max(self.flow) < self.threshold else set()
        return None


def class_attention(row: Row, prompt: Prompt) -> list[Any]:
    """Of each image in the eager maps of the tower, where it has a class token."""
    given = row.inputs([prompt])
    if row.name != "llava" or "pixel_values" not in given:
        return [None] * len(prompt)
    model = fresh(row)
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(given["pixel_values"], output_attentions=True).attentions
    return list(maps[-2][:, :, 0, 1:].mean(1))


def chosen(x: Any, score: Any, count: int) -> list[int]:
    more = {} if score is None else {"class_attention": score[None]}
    return plan(x[None], "todre", keep=count, **more).rep[0].tolist()


def flows(row: Row) -> list[float]:
    """The larger of both means, of the prompts with images."""
    found = []
    for prompt in PROMPTS[:2]:
        oracle = WithEnding(row, prompt, 0.0)
        oracle.logits()
        found.append(max(oracle.flow))
    return found


@some_families
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("which", ["none", "one", "both"])
def test_as_with_masks_at_full_length(row: Row, implementation: str, which: str) -> None:
    """In a batch some prompts end and others do not."""
    low, high = sorted(flows(row))
    assert high > low + 1e-3
    threshold = {"none": low / 2, "one": (low + high) / 2, "both": 1.0}[which]
    model = fresh(row)
    model.set_attn_implementation(implementation)
    patch(model, "todre", keep=0.5, threshold=threshold)
    out = generate(model, row.inputs(PROMPTS), STEPS)
    most = 0
    for i, prompt in enumerate(PROMPTS):
        oracle = WithEnding(row, prompt, threshold)
        ids, logits = oracle.greedy(STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= NEAR
        most = max(most, len(oracle.sequence.rows) - sum(map(len, oracle.gone.values())))
    assert out.past_key_values.layers[LAYER].keys.shape[2] == most - 1
    tokens = report(model).to_json()["tokens"]
    assert tokens[0] == tokens[1] and (tokens[2] == tokens[1]) == (which == "none")
    assert (tokens[2] == 0) == (which == "both") and report(model).visual_left == tokens[2]


@some_families
def test_beams_batches_and_turns(row: Row) -> None:
    model = patch(fresh(row), "todre", keep=0.5, threshold=sum(flows(row)) / 2)
    for way in ({}, {"num_beams": 3}):
        alone = [generate(model, row.inputs([p]), 3, **way).sequences[:, -3:].tolist() for p in PROMPTS]
        together = generate(model, row.inputs(PROMPTS), 3, **way).sequences[:, -3:].tolist()
        assert together == [answer for answers in alone for answer in answers]
    prompt = PROMPTS[0]
    threshold = 1.0
    patch(model, "todre", keep=0.5, threshold=threshold)
    out, oracle = generate(model, row.inputs([prompt]), 3), WithEnding(row, prompt, threshold)
    assert out.sequences[0, -3:].tolist() == oracle.greedy(3)[0]
    ids = torch.cat([out.sequences, torch.tensor([[11]])], 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": out.past_key_values}
    again = generate(model, given, 3)
    oracle.sequence = oracle_with(oracle, 11)
    assert again.sequences[0, -3:].tolist() == oracle.greedy(3)[0]


def oracle_with(oracle: WithEnding, word: int) -> Any:
    from by_hand import extended

    return extended(oracle.model, oracle.sequence, word)


def test_where_it_stands() -> None:
    model = patch(fresh(LLAVA), "todre", keep=0.5)
    assert model.model._tokenreduce.reduction.stages == ((0, 0.5), (2, Ending(2, 0.1)))
    assert report(model).positions == "keep"
    assert report(patch(model, "todre", keep=0.5, threshold=0)).positions == "renumber"
    with pytest.raises(ValueError, match="todre ends before layer 2, and keep names layer 2"):
        patch(model, "todre", keep={2: 0.5})
    with pytest.raises(ValueError, match="the last of them decided which tokens of images left"):
        generate(patch(model, "todre", keep=0.5), LLAVA.inputs([PROMPTS[0]]), assistant_model=fresh(LLAVA))


def test_families_without_layers_do_without_an_ending() -> None:
    row = BY_NAME["qwen3_vl"]
    assert "todre" not in compatible(shared("qwen3_vl")).language
    with pytest.raises(ValueError, match=r"it ends within it, but tokens leave only before .*; give threshold=0"):
        patch(fresh(row), "todre", keep=0.5)
    model = patch(fresh(row), "todre", keep=0.5, threshold=0)
    generate(model, row.inputs(PROMPTS))
    assert report(model).units == ((16, 8), (12, 6), (16, 8))


@pytest.mark.parametrize("given", [None, "seen", "added"])
def test_flow_in_tiles(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """Of 7 rows after 2 entries, three at a time, with heads that share keys."""
    monkeypatch.setattr(_layers, "TILE", 3)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 7, 8, generator=generator), torch.randn(2, 2, 9, 8, generator=generator)
    columns = torch.rand(2, 7, generator=generator) > 0.5
    seen = torch.ones(7, 9, dtype=torch.bool).tril(2)
    mask = {None: None, "seen": seen[None, None], "added": torch.zeros(1, 1, 7, 9).masked_fill(~seen, -torch.inf)}
    found = _layers.to_columns(columns, query, key, mask[given], 0.5)
    every = (query * 0.5) @ key.repeat_interleave(2, 1).transpose(2, 3)
    attention = every.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)
    expected = (attention[:, :, 2:] * columns[:, None]).sum(-1)
    assert torch.allclose(found, expected, atol=1e-6) and expected.std() > 0
