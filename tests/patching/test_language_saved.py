"""Saving, loading, reporting and describing a patch of what enters a language model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from prompting import BY_NAME, PROMPTS, fresh, generate
from timms import small_vit

import tokenreduce
from tokenreduce import TokenMap, compatible, describe, load_patch, patch, report, save_patch
from tokenreduce.reducers import registry

LLAVA = BY_NAME["llava"]


@pytest.mark.parametrize("budget", [{"keep": 0.25}, {"keep": 3}, {"keep": 0.5, "positions": "keep"}], ids=str)
@pytest.mark.parametrize("load", ["load_patch", "patch"])
def test_a_saved_patch_is_the_same(budget: dict[str, Any], load: str, tmp_path: Path) -> None:
    given, file = LLAVA.inputs(PROMPTS), tmp_path / "patch.json"
    model = patch(fresh(LLAVA), "divprune", inherit=False, **budget)
    save_patch(model, file)
    again = load_patch(fresh(LLAVA), file) if load == "load_patch" else patch(fresh(LLAVA), schedule=file)
    assert torch.equal(generate(again, given).logits[0], generate(model, given).logits[0])
    assert report(again).to_json() == report(model).to_json()
    save_patch(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == file.read_text()
    assert json.loads(file.read_text()) == {
        "tokenreduce": 1,
        "method": "divprune",
        "options": {"inherit": False},
        "positions": "auto",
        **budget,
    }


def test_a_saved_patch_does_not_load_onto_a_vision_transformer(tmp_path: Path) -> None:
    save_patch(patch(fresh(LLAVA), "divprune", keep=0.25), tmp_path / "patch.json")
    with pytest.raises(ValueError, match="holds no vision-language model that tokenreduce knows"):
        load_patch(small_vit(), tmp_path / "patch.json")


def test_the_report_before_and_after_a_prompt() -> None:
    model = patch(fresh(LLAVA), "divprune", keep=0.25)
    assert "nothing has left yet" in str(report(model))
    assert report(model).to_json() == {
        "method": "divprune",
        "options": {"inherit": True},
        "keep": 0.25,
        "positions": "renumber",
    }
    generate(model, LLAVA.inputs(PROMPTS))
    shown = report(model).to_json()
    assert (shown["units"], shown["visual_tokens"], shown["visual_left"]) == ([[16, 4]] * 3, 48, 12)
    assert (shown["rows"], shown["rows_left"], shown["tokens"]) == (39, 15, [12] * 3)
    row_bytes = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, channels, bytes
    assert (shown["kv_bytes"], shown["kv_bytes_unpatched"]) == (3 * 15 * row_bytes, 3 * 39 * row_bytes)
    text = str(report(model))
    assert "3 images or videos, 48 visual tokens, 12 enter the language model (25.0%)" in text
    assert "rows of the longest of 3 prompts: 39 -> 15" in text and "keys and values: 0.0428 -> 0.0165 MiB" in text


def test_without_a_cache_there_are_no_bytes() -> None:
    model = patch(fresh(LLAVA), "divprune", keep=0.25)
    model(**LLAVA.inputs(PROMPTS), use_cache=False)
    assert report(model).kv_bytes == 0 and "keys and values" not in str(report(model))


def test_facts_of_methods() -> None:
    assert describe("divprune")["places"] == ["encoder", "language"] and describe("divprune")["positions"] == "renumber"
    assert describe("evit")["places"] == ["encoder"] and describe("tome")["positions"] == "keep"


def test_a_method_for_language_models_alone() -> None:
    @tokenreduce.register
    @dataclass(frozen=True)
    class Later(tokenreduce.Reducer):
        """Keep the last tokens."""

        name: ClassVar[str] = "later"
        kind: ClassVar[str] = "pruning"
        paper: ClassVar[str] = "none"
        year: ClassVar[int] = 2026
        places: ClassVar[frozenset[str]] = frozenset({"language"})

        def plan(self, tokens, keep, state=None):
            index = torch.arange(tokens.count).expand(tokens.features.shape[0], -1)
            first = tokens.count - keep
            return TokenMap(keep, dest=(index - first).clamp_min(0), rep=index[:, first:], drops=True)

    try:
        with pytest.raises(ValueError, match="it is for what enters a language model, with keep="):
            patch(small_vit(), "later", ratio=0.5)
        assert "later" not in compatible(small_vit())
        model = patch(fresh(LLAVA), "later", keep=2)
        generate(model, LLAVA.inputs(PROMPTS))
        assert report(model).visual_left == 6
        with pytest.raises(ValueError, match=r"places \['attic'\] must be some of"):
            tokenreduce.register(dataclass(frozen=True)(type("Odd", (Later,), {"places": frozenset({"attic"})})))
        with pytest.raises(ValueError, match="positions 'anew' one of"):
            tokenreduce.register(dataclass(frozen=True)(type("Odd", (Later,), {"positions": "anew"})))
    finally:
        registry._registry.pop("later")
