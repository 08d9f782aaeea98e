"""Where nothing leaves, nothing changes: logits, ids and the cache are those of the unpatched model, bit by bit."""

from __future__ import annotations

import pytest
import torch
from prompting import PROMPTS, ROWS, Row, fresh, generate, shared
from transformers.cache_utils import DynamicCache

from tokenreduce import compatible, patch, report

# Families whose vision tower shows what its tokens receive.
RECEIVING = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "smolvlm", "idefics3")
RECEIVING += ("gemma3", "paligemma")
every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@every_family
@pytest.mark.parametrize("keep", [1.0, 16])
def test_keeping_all_changes_nothing(row: Row, keep: float) -> None:
    given = row.inputs(PROMPTS)
    patched = patch(fresh(row), "divprune", keep=keep)
    for before, after in zip(generate(shared(row.name), given).logits, generate(patched, given).logits, strict=True):
        assert torch.equal(before, after)
    with torch.no_grad():
        out, expected = patched(**given, use_cache=True), shared(row.name)(**given, use_cache=True)
    assert torch.equal(out.logits, expected.logits)
    assert type(out.past_key_values) is DynamicCache
    with pytest.raises(ValueError, match="no prompt has lost a token"):
        report(patched).rows  # noqa: B018


@every_family
def test_prompts_of_text_alone_change_nothing(row: Row) -> None:
    given = row.inputs([(5,), (9,)])
    patched = patch(fresh(row), "divprune", keep=0.25)
    out, expected = generate(patched, given), generate(shared(row.name), given)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, expected.logits, strict=True))
    assert type(out.past_key_values) is DynamicCache


@every_family
def test_every_method_that_fits_keeps_all_exactly(row: Row) -> None:
    given = row.inputs(PROMPTS)
    model = fresh(row)
    with torch.no_grad():
        expected = shared(row.name)(**given).logits
        for method in compatible(model).language:
            assert torch.equal(patch(model, method, keep=1.0)(**given).logits, expected), method


def test_the_methods_that_fit() -> None:
    """Those whose maps name a member of each output."""
    plain = {"atc", "divprune", "dpc_knn", "kmeans", "kmedoids", "pitome", "pool", "random", "spectral", "tome", "ward"}
    for row in ROWS:
        received = {"fopru", "visionzip", "vflowopt"} if row.name in RECEIVING else set()
        of_tower = received | ({"fastervlm"} if row.name in ("llava", "internvl") else set())
        within = {"fastv", "pyramiddrop", "todre"} if row.within else set()
        gridless = set() if row.grids else {"pool"}
        assert set(compatible(shared(row.name)).language) == plain - gridless | of_tower | within
