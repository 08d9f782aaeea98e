"""Several turns with one cache: the cache says what it holds, wherever it goes."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import Sequence, by_divprune, deleted, greedy, logits_of, units_of, whole
from prompting import BY_NAME, OF_IMAGES, PROMPTS, ROWS, Prompt, Row, fresh, generate, shared
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import DynamicCache

from tokenreduce import patch

NEAR = 1e-5
every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
counted = pytest.mark.parametrize("row", [r for r in ROWS if not r.rotates_in_3d], ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]


def answered(row: Row, parts: Prompt, ids: torch.Tensor, steps: int, said: int) -> Any:
    """What an unpatched model answers to all `ids` of a conversation `(1, n)`, whose parts are these, at once; `said`:
    words and placeholders of the first prompt."""
    given = row.inputs([parts])
    assert given["input_ids"].shape == ids.shape
    given["input_ids"] = ids
    with torch.no_grad():
        full = first_blocks(row, whole(shared(row.name), row, given), said)
        left = deleted(full, units_of(row, parts), 0.25, by_divprune, not row.rotates_in_3d)
    return greedy(shared(row.name), left, steps)


def first_blocks(row: Row, full: Sequence, said: int) -> Sequence:
    """Without the blocks of later prompts, where only the first has any."""
    return replace(full, blocks=full.blocks.masked_fill(full.places >= said, -1)) if row.prefix else full


@every_family
def test_three_turns_of_text_equal_the_whole_conversation_at_once(row: Row) -> None:
    model = patch(fresh(row), "divprune", keep=0.25)
    first: Prompt = (2, "a", 3)
    given = row.inputs([first])
    out = generate(model, given, 4)
    ids, steps = out.sequences, 5
    for turn in range(2):
        words = torch.randint(1, 90, (1, 3), generator=torch.Generator().manual_seed(turn))
        ids = torch.cat([ids, words], 1)
        more = {"past_key_values": out.past_key_values, "attention_mask": torch.ones_like(ids)}
        out = generate(model, {"input_ids": ids, **more}, steps)
        expected, logits = answered(row, fill(row, first, ids), ids, steps, len(row.ids(first)))
        assert out.sequences[0, -steps:].tolist() == expected
        assert (torch.cat(out.logits) - logits).abs().max() <= NEAR
        ids = out.sequences


def fill(row: Row, first: Prompt, ids: torch.Tensor) -> Prompt:
    """The parts of a conversation that goes on with text, whose images are those of its first prompt."""
    said = len(row.ids(first))
    return (*first[:-1], int(first[-1]) + ids.shape[1] - said)


@counted
@pytest.mark.parametrize("positions", ["keep", "renumber"])
def test_a_new_image_in_the_second_turn(row: Row, positions: str) -> None:
    """Of every prompt of a batch, padded on the left; also where the first turn had no image."""
    model = patch(fresh(row), "divprune", keep=0.25, positions=positions)
    for first in ([(2, "a", 3), (1, "a", 2, "a", 2)], [(4,), (7,)]):
        check_second_turn(row, model, first, positions)


def check_second_turn(row: Row, model: Any, first: list[Prompt], positions: str) -> None:
    given, then = row.inputs(first), [(1, "a", 2), (2, "a", 1)]
    out = generate(model, given, 3)
    second = row.inputs(then, seed=7)
    ids = torch.cat([out.sequences, second["input_ids"]], 1)
    mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, given["input_ids"].shape[1] :])], 1)
    asked = row.pixels(then, 7) | {"input_ids": ids, "attention_mask": mask} | row.types(ids)
    again = generate(model, asked | {"past_key_values": out.past_key_values}, 4)
    for i, prompt in enumerate(first):
        mine, later = row.pixels([prompt], 0), row.pixels([then[i]], 7)
        mine = {name: torch.cat([mine[name], x], row.axis) if name in mine else x for name, x in later.items()}
        alone = {"input_ids": ids[i][mask[i].bool()][None]} | mine
        with torch.no_grad():
            full = first_blocks(row, whole(shared(row.name), row, alone), len(row.ids(prompt)))
            units = units_of(row, (*prompt, 3, *then[i]))
            left = deleted(full, units, 0.25, by_divprune, positions == "renumber")
        expected, logits = greedy(shared(row.name), left, 4)
        assert again.sequences[i, -4:].tolist() == expected
        assert (torch.stack(again.logits)[:, i] - logits).abs().max() <= NEAR


@every_family
def test_an_image_after_text_and_after_an_image(row: Row) -> None:
    """The positions of the whole conversation are given: transformers cannot make them for a part of one."""
    for first in ((4,), (2, "b", 3)):
        parts: Prompt = (*first, "a", 3)
        given, start = row.inputs([parts]), len(row.ids(first))
        full = first_blocks(row, whole(shared(row.name), row, given), start)
        positions = full.positions[:, None] if row.rotates_in_3d else full.positions
        model = patch(fresh(row), "divprune", keep=0.25)
        before, after = _cut(given, row, first, start)
        with torch.no_grad():
            cache = model(**before, position_ids=positions[..., :start], use_cache=True).past_key_values
            more = {"position_ids": positions[..., start:], "past_key_values": cache}
            logits = model(**after, **more, attention_mask=given["attention_mask"]).logits[0, -3:]
            left = deleted(full, units_of(row, parts), 0.25, by_divprune, not row.rotates_in_3d)
            assert (logits - logits_of(shared(row.name), left)[-3:]).abs().max() <= NEAR


def _cut(given: dict[str, torch.Tensor], row: Row, first: Prompt, start: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of both turns: those with something for each place, and those of the images of each."""
    images = sum(isinstance(part, str) for part in first)
    grids = given.get("image_grid_thw")
    at = images if grids is None else int(grids[:images].prod(1).sum())
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name in given.keys() & {"input_ids", "mm_token_type_ids", "token_type_ids"}:
        before[name], after[name] = given[name][:, :start], given[name][:, start:]
        if row.masks and name != "input_ids":
            after[name] = None if row.prefix else given[name]  # masks are made of the types of all places
    for name in given.keys() & {"pixel_values", *OF_IMAGES}:
        split, axis = (at, row.axis) if name == "pixel_values" else (images, 0)
        first_ones, after[name] = given[name].tensor_split([split], axis)
        before |= {name: first_ones} if images else {}
    return before, after


def second_turn(model: Any, ids: torch.Tensor, cache: Any) -> Any:
    words = torch.tensor([[11, 12]]).expand(len(ids), -1)
    more = torch.cat([ids, words], 1)
    return generate(model, {"input_ids": more, "attention_mask": torch.ones_like(more), "past_key_values": cache}, 4)


@every_family
def test_a_cache_can_be_copied_and_pickled(row: Row) -> None:
    """One prompt, several questions."""
    model = patch(fresh(row), "divprune", keep=0.25)
    out = generate(model, row.inputs([PROMPTS[1]]), 3)
    written = io.BytesIO()
    torch.save(out.past_key_values, written)
    written.seek(0)
    copies = [copy.deepcopy(out.past_key_values), torch.load(written, weights_only=False)]
    expected = second_turn(model, out.sequences, out.past_key_values)
    for cache in copies:
        again = second_turn(model, out.sequences, cache)
        assert torch.equal(again.sequences, expected.sequences)
        assert all(torch.equal(a, b) for a, b in zip(again.logits, expected.logits, strict=True))


def prefilled(row: Row, prompts: list[Prompt]) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs(prompts)
    with torch.no_grad():
        return model, model(**given, past_key_values=empty(model)).past_key_values, given


def empty(model: Any) -> DynamicCache:
    """A cache whose last rows can be taken out of layers with windows, too, as `generate` does with drafted words."""
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    return cache


def step(model: Any, cache: Any, mask: torch.Tensor, word: int = 9) -> torch.Tensor:
    """The logits of one word more, at the position that follows."""
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    positions = mask.cumsum(1)[:, -1:] - 1
    ids = torch.full((len(mask), 1), word)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, 0]


def test_prompts_of_a_cache_are_reordered_repeated_and_selected() -> None:
    model, cache, given = prefilled(LLAVA, [*PROMPTS])
    mask = given["attention_mask"]
    expected = step(model, copy.deepcopy(cache), mask)
    for change, index in (
        (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ):
        other = copy.deepcopy(cache)
        change(other)
        assert torch.allclose(step(model, other, mask[index]), expected[index], atol=1e-6)


@every_family
def test_a_cache_is_cropped_behind_the_last_image(row: Row) -> None:
    if row.name == "qwen3_5":
        pytest.skip("states of linear attention cannot be cropped")
    if row.prefix:
        pytest.skip("words of a prompt see each other, and are not the same without the last")
    prompt: Prompt = (1, "b", 2, "a", 4)
    model, cache, given = prefilled(row, [prompt])
    shorter = {
        name: value[:, :-2] if value.shape == given["input_ids"].shape else value for name, value in given.items()
    }
    with torch.no_grad():
        expected = model(**shorter, past_key_values=empty(model)).past_key_values
    cache.crop(-2)
    expected.crop(0)  # layers with windows hold all rows until then
    assert cache.get_seq_length() == expected.get_seq_length() == shorter["input_ids"].shape[1]
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert layer.keys is other.keys or torch.allclose(layer.keys, other.keys, atol=1e-6)
    mask = shorter["attention_mask"]
    if not row.rotates_in_3d:
        assert torch.allclose(step(model, cache, mask), step(model, expected, mask), atol=1e-6)
        cache.crop(-1)
    with pytest.raises(ValueError, match=r"the last 5 places of this prompt cannot be taken out of the cache"):
        cache.crop(-5)


def test_a_cache_that_is_reset_is_a_plain_one_again() -> None:
    model, cache, given = prefilled(LLAVA, [PROMPTS[0]])
    cache.reset()
    assert type(cache) is DynamicCache and cache.get_seq_length() == 0
    assert not {"kept", "inside"} & vars(cache).keys()
    with torch.no_grad():
        again = model(**given, past_key_values=cache).logits
    assert torch.equal(again, model(**given).logits)


class Questions(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would have to finish its work."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@every_family
@pytest.mark.parametrize("prompts", [[PROMPTS[1]], [*PROMPTS]], ids=["alone", "batch"])
def test_a_step_reads_no_number_from_the_device(row: Row, prompts: list[Prompt]) -> None:
    """Beyond those that the unpatched model reads."""
    found = []
    for model in (shared(row.name), patch(fresh(row), "divprune", keep=0.25)):
        given = row.inputs(prompts)
        with torch.no_grad():
            cache = model(**given, use_cache=True).past_key_values
            mask = None if len(prompts) == 1 else torch.cat([given["attention_mask"], torch.ones(len(prompts), 1)], 1)
            asked = {"input_ids": torch.full((len(prompts), 1), 9), "attention_mask": mask}
            asked["position_ids"] = torch.full((len(prompts), 1), 60)
            with Questions() as questions:
                model(**asked, past_key_values=cache)
        found.append(questions.count)
    assert found[1] <= found[0]
