"""Parts of a model on several devices, or offloaded: `accelerate` copies what passes from one to the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from elsewhere import ONE, TWO, There, devices, place, send, there
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, generate, language_of, shared
from torch import nn

from tokenreduce import patch, report

every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]
METHODS: list[tuple[str, Any, dict[str, Any]]] = [
    ("tome", 0.5, {}),
    ("fopru", 0.5, {}),
    ("fastervlm", 0.5, {}),
    ("fastv", 0.5, {}),
    ("todre", 0.5, {"threshold": 1.0}),
    ("divprune", {0: 0.5, 1: 0.5, 2: 0.5}, {}),
]


@every_family
@pytest.mark.parametrize("first", ["patched", "dispatched"])
def test_generate_where_accelerate_moves_things(row: Row, first: str) -> None:
    """It makes every dict that passes anew, features that were encoded before too."""
    accelerate = pytest.importorskip("accelerate")
    given, model = row.inputs(PROMPTS), fresh(row)
    if first == "patched":
        patch(model, "divprune", keep=0.25)
    model = accelerate.dispatch_model(model, {"model": "cpu", "lm_head": "cpu"}, force_hooks=True)
    if first == "dispatched":
        patch(model, "divprune", keep=0.25)
    expected = generate(patch(fresh(row), "divprune", keep=0.25), given)
    found = generate(model, given)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.logits[0], expected.logits[0])


def spread(row: Row, model: Any) -> None:
    """Tower, and the layers but the first, on another device than embeddings, rotations and the head."""
    language = language_of(model)
    for part in model.model.children():
        if part is not language:
            place(part, TWO)
    for name, part in language.named_children():
        if name != "layers":
            place(part, TWO if name == "norm" else ONE)
    for number, layer in enumerate(language.layers):
        place(layer, TWO if number else ONE)
    place(model.lm_head, ONE)
    for name, x in model.model._parameters.items():
        model.model._parameters[name] = nn.Parameter(there(x.detach(), ONE), requires_grad=False)


def check(row: Row, method: str, keep: Any, **options: Any) -> None:
    """Prompts, and a word after them, as on one device."""
    given, words = row.inputs(PROMPTS), torch.tensor([[5]] * len(PROMPTS))
    mask = torch.cat([given["attention_mask"], torch.ones_like(words)], 1)
    then: dict[str, Any] = {"input_ids": words, "attention_mask": mask}
    if row.rotates_in_3d:  # which transformers makes of lists, below what is seen here
        more = {name: given[name] for name in ("mm_token_type_ids", "image_grid_thw", "attention_mask")}
        given["position_ids"] = shared(row.name).model.get_rope_index(given["input_ids"], **more)[0]
        then["position_ids"] = torch.full((3, *words.shape), mask.shape[1] - 1)
    here, apart = (patch(fresh(row), method, keep=keep, **options) for _ in "ab")
    spread(row, apart)
    with torch.no_grad():
        expected = here(**given, use_cache=True)
        later = here(**then, past_key_values=expected.past_key_values)
    with devices():
        moved = {name: x if name == "image_grid_thw" else send(x, ONE) for name, x in given.items()}
        out = apart(**moved, use_cache=True, output_hidden_states=True)
        again = apart(**send(then, ONE), past_key_values=out.past_key_values)
    assert isinstance(out.logits, There) and out.past_key_values.layers[1].keys.device == TWO
    assert (out.logits.inner - expected.logits).abs().max() <= 1e-5
    assert (again.logits.inner - later.logits).abs().max() <= 1e-5
    assert report(apart).units == report(here).units and report(apart).visual_left < report(apart).visual_tokens


@every_family
def test_a_language_model_on_two_devices(row: Row) -> None:
    check(row, "divprune", 0.25)


@pytest.mark.parametrize("case", METHODS, ids=str)
def test_methods_on_two_devices(case: Any) -> None:
    method, keep, options = case
    check(LLAVA, method, keep, **options)


def test_devices_are_seen() -> None:
    """So that the tests above can fail."""
    with devices():
        x, y = there(torch.ones(2), ONE), there(torch.ones(2), TWO)
        assert (x + y.to(ONE)).device == ONE and torch.arange(2, device=TWO).device == TWO
        for other in (y, torch.ones(2)):
            with pytest.raises(RuntimeError, match="add met tensors on"):
                x + other
