"""Multiply-adds of vision-language models: `report`'s against those that `count_flops` sees, prefill and decoding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, shared

from tokenreduce import count_flops, patch, report
from tokenreduce.lab.speed.row_limit import language_of

every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
WITHIN = [row for row in ROWS if row.name in ("llava", "qwen2_vl", "qwen2_5_vl")]
LLAVA = BY_NAME["llava"]
WIDTH, HIDDEN, KEYS, VOCABULARY, DEPTH = 32, 64, 16, 100, 3
LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * HIDDEN  # of a row: queries, output, keys, values, MLP


def tables(calls: list[Any], language: Any) -> int:
    """What the tables of positions cost in these calls."""
    return sum(count_flops(language.rotary_emb, call).total for call in calls)


def listen(language: Any) -> list[Any]:
    """The arguments of each call of the tables of positions."""
    calls: list[Any] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        calls.append(dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs)

    language.rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def check(row: Row, method: str, keep: Any) -> Any:
    """What leaves is what `report` says: the tower, the projector and the head cost the same in both models."""
    given, plain, model = row.inputs(PROMPTS), fresh(row), patch(fresh(row), method, keep=keep)
    calls = listen(language_of(plain)), listen(language_of(model))
    whole, some = count_flops(plain, given), count_flops(model, given)
    own, before = (tables(list(heard), language_of(shared(row.name))) for heard in calls)
    shown = report(model)
    assert not whole.uncounted and not some.uncounted and not shown.uncounted
    left, unpatched = shown.prefill_macs
    assert (some.model - before) - (whole.model - own) == left - unpatched
    assert shown.prefill_share == left / unpatched < 1
    assert whole.reducer == whole.restore == some.restore == 0
    return shown, some


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "qwen3_5"], ids=lambda row: row.name)
def test_the_share_is_what_is_counted(row: Row) -> None:
    shown, counted = check(row, "divprune", 0.25)
    assert counted.reducer == sum(n**2 * WIDTH for n, _ in shown.units)
    assert shown.layer_rows == (shown.rows[1],) * DEPTH


@pytest.mark.parametrize("row", WITHIN, ids=lambda row: row.name)
@pytest.mark.parametrize(("method", "keep"), [("fastv", {2: 0.5}), ("divprune", {0: 0.5, 1: 0.5}), ("random", {1: 4})])
def test_within_the_language_model(row: Row, method: str, keep: dict[int, float]) -> None:
    shown, counted = check(row, method, keep)
    rows = shown.layer_rows
    assert rows[0] > rows[2] and (rows[0] > rows[1]) == (1 in keep) and rows[-1] == shown.rows[1]
    assert (counted.reducer == 0) == (method == "random")


def test_by_hand() -> None:
    """19 places of one prompt, of which 16 are of an image: 7 and 4 rows, then 3 fewer before the last layer."""
    model = patch(fresh(LLAVA), "random", keep={0: 4, 2: 1})
    given = LLAVA.inputs([(1, "a", 2)])
    count_flops(model, given)
    shown, pair = report(model), 2 * WIDTH
    left = 2 * 7 * (LAYER + 7 * pair) + 4 * (LAYER + 4 * pair)
    assert shown.layer_rows == (7, 7, 4)
    assert shown.prefill_macs == (left, 3 * 19 * (LAYER + 19 * pair))
    assert shown.to_json()["prefill_share"] == left / (3 * 19 * (LAYER + 19 * pair))
    assert f"{shown.prefill_share:.1%} of the unpatched ones" in str(shown) and "7 7 4" in str(shown)


def test_a_later_turn_attends_to_the_rows_that_are_left() -> None:
    """A second prompt with an image, after 19 places of which 7 rows are left."""
    model = patch(fresh(LLAVA), "random", keep=4)
    first, second = LLAVA.inputs([(1, "a", 2)]), LLAVA.inputs([("a", 1)])
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        model(**{k: v for k, v in second.items() if k != "attention_mask"}, past_key_values=cache)
    pair = 2 * WIDTH
    assert report(model).prefill_macs == (3 * 5 * (LAYER + 12 * pair), 3 * 17 * (LAYER + 36 * pair))


def test_what_cannot_be_counted_is_named() -> None:
    model = patch(fresh(BY_NAME["qwen3_5"]), "divprune", keep=0.5)
    with torch.no_grad():
        model(**BY_NAME["qwen3_5"].inputs(PROMPTS))
    shown = report(model)
    assert shown.prefill_macs is shown.prefill_share is shown.to_json()["prefill_share"] is None
    assert any("layers.0" in name for name in shown.uncounted) and "unknown: layers.0" in str(shown)
    assert shown.layer_rows == (shown.rows[1],) * DEPTH


def test_an_unknown_part_is_named() -> None:
    model = fresh(LLAVA)
    model.model.language_model.layers[1].mlp.experts = torch.nn.Bilinear(2, 2, 2)
    patch(model, "divprune", keep=0.5)
    assert report(model).uncounted == ("layers.1.mlp.experts.weight",)


@every_family
def test_everything_kept_costs_the_same(row: Row) -> None:
    given = row.inputs(PROMPTS)
    assert count_flops(patch(fresh(row), "divprune", keep=1.0), given) == count_flops(shared(row.name), given)


@pytest.mark.parametrize("method", ["fastervlm", "ward"])
def test_what_a_method_does_is_its_own_work(method: str) -> None:
    """Attention of the class token, and averages of rows; the tower and the head do as before."""
    model, given = patch(fresh(LLAVA), method, keep=0.25), LLAVA.inputs([(1, "a", 2)])
    counted, whole = count_flops(model, given), count_flops(shared("llava"), given)
    shown = report(model)
    calls = [{"x": torch.zeros(1), "position_ids": torch.zeros(1, n)} for n in (7, 19)]
    of_tables = [tables([call], shared("llava").model.language_model) for call in calls]
    left, unpatched = shown.prefill_macs
    assert counted.model - whole.model == left - unpatched + of_tables[0] - of_tables[1]
    assert counted.reducer > 0 == counted.restore


@pytest.mark.parametrize("keep", [{0: 4}, {1: 4}], ids=["first", "within"])
def test_a_step_of_decoding_by_hand(keep: dict[int, int]) -> None:
    """One word after 19 places: it attends to the rows that are left, and to itself."""
    model, given = patch(fresh(LLAVA), "random", keep=keep), LLAVA.inputs([(1, "a", 2)])
    word = {"input_ids": torch.tensor([[5]]), "use_cache": True}
    counts = []
    for one in (model, shared("llava")):
        with torch.no_grad():
            cache = one(**given, use_cache=True).past_key_values
        counts.append(count_flops(one, word | {"past_key_values": copy.deepcopy(cache)}))
        assert cache.get_seq_length() == 19
    table = tables([{"x": torch.zeros(1), "position_ids": torch.zeros(1, 1)}], shared("llava").model.language_model)
    entries = [8 if layer >= min(keep) else 20 for layer in range(DEPTH)]
    for count, seen in zip(counts, (entries, [20] * DEPTH), strict=True):
        assert count.model == DEPTH * LAYER + sum(seen) * 2 * WIDTH + WIDTH * VOCABULARY + table
        assert count.reducer == count.restore == 0 and not count.uncounted
