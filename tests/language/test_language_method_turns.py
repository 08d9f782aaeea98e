"""Methods that read the tower, and the one that ends, in later turns, with drafted words, samples and padding."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from prompting import BY_NAME, PROMPTS, Prompt, Row, fresh, generate, shared

from tokenreduce import patch

NEAR = 1e-5
LLAVA = BY_NAME["llava"]
BLIND: dict[str, dict[str, Any]] = {
    "fastervlm": {"tower_layers": "all"},
    "fopru": {"strategy": "row"},
    "todre": {"threshold": 0, "criterion": "maxmin"},
    "visionzip": {},
    "vflowopt": {"cell": 2},
}
FAMILIES = [BY_NAME[name] for name in ("llava", "qwen2_5_vl")]


def fits(row: Row, method: str) -> bool:
    return row.name == "llava" or method != "fastervlm"


CASES = [(row, method) for row in FAMILIES for method in BLIND if fits(row, method)]
blind = pytest.mark.parametrize(("row", "method"), CASES, ids=lambda x: getattr(x, "name", x))


@blind
def test_turns_of_text_equal_the_conversation_at_once(row: Row, method: str) -> None:
    """What is kept does not follow from the words, so one prompt of all of them keeps the same; also after a copy of
    the cache, and in float64 there is no other difference than rounding."""
    model = patch(fresh(row).double(), method, keep=0.5, **BLIND[method])
    given = row.inputs([(2, "a", 3)])
    out = generate(model, given, 3)
    ids = torch.cat([out.sequences, torch.tensor([[11, 12, 13]])], 1)
    cache = pickle.loads(pickle.dumps(copy.deepcopy(out.past_key_values)))
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    again = generate(model, asked | {"past_key_values": cache}, 4)
    pixels = {name: x for name, x in given.items() if name not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    types = {"mm_token_type_ids": (ids == 99).int()} if "mm_token_type_ids" in given else {}
    whole = generate(model, asked | pixels | types, 4)
    assert again.sequences.tolist() == whole.sequences.tolist()
    assert (torch.cat(again.logits) - torch.cat(whole.logits)).abs().max() <= NEAR


@pytest.mark.parametrize("method", [*BLIND, "ending"])
def test_a_new_image_in_a_batch_of_turns(method: str) -> None:
    """Every prompt as it is alone, with padding, fillers and images of the turn before in the cache."""
    options = {"threshold": 1.0} if method == "ending" else BLIND[method]
    model = patch(fresh(LLAVA), "todre" if method == "ending" else method, keep=0.5, **options)
    prompts: list[Prompt] = [(2, "a", 3), (1, "a", 2, "a", 2), (6,)]

    def talk(some: list[Prompt]) -> list[list[int]]:
        given = LLAVA.inputs(some)
        out = generate(model, given, 3)
        second = LLAVA.inputs([(1, "a", 2)] * len(some), seed=7)
        ids = torch.cat([out.sequences, second["input_ids"]], 1)
        mask = torch.cat([given["attention_mask"], torch.ones_like(ids[:, given["input_ids"].shape[1] :])], 1)
        asked = {"input_ids": ids, "attention_mask": mask, "pixel_values": second["pixel_values"]}
        return generate(model, asked | {"past_key_values": out.past_key_values}, 4).sequences[:, -4:].tolist()

    assert talk(prompts) == [talk([prompt])[0] for prompt in prompts]


@blind
def test_drafted_words_and_samples(row: Row, method: str) -> None:
    model, given = patch(fresh(row), method, keep=0.5, **BLIND[method]), row.inputs([PROMPTS[1]])
    asked = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    expected = model.generate(**given, **asked).tolist()
    assert model.generate(**given, **asked, prompt_lookup_num_tokens=3).tolist() == expected
    assert model.generate(**given, **asked, assistant_model=shared(row.name)).tolist() == expected
    samples = {"do_sample": True, "max_new_tokens": 4, "num_return_sequences": 3}
    torch.manual_seed(0)
    first = model.generate(**given, **samples).tolist()
    torch.manual_seed(0)
    assert model.generate(**given, **samples).tolist() == first


@blind
def test_padding_on_either_side(row: Row, method: str) -> None:
    """Of a plain forward: every place shows the same."""
    model = patch(fresh(row), method, keep=0.5, **BLIND[method])
    shown = []
    for side in ("left", "right"):
        given = row.inputs(PROMPTS, side)
        with torch.no_grad():
            logits = model(**given).logits
        shown.append(logits[given["attention_mask"].bool()])
    assert (shown[0] - shown[1]).abs().max() <= NEAR
