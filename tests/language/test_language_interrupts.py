"""Forwards that end without their hooks, as after Ctrl-C, and layers that run outside of them, in a backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, generate, language_of
from tokenreduce.patches.vision_language import _tower
from torch import nn
from transformers.cache_utils import DynamicCache

from tokenreduce import compatible, patch, report, unpatch
from tokenreduce.forward.language import run as runs

every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]


def method_of(row: Row) -> str:
    """One that reads the tower, where it can be read."""
    fits = compatible(fresh(row)).language
    return next(name for name in ("fastervlm", "fopru", "divprune") if name in fits)


def interrupt(part: Any) -> Any:
    """Ctrl-C before a part runs; torch calls no hooks then, not even those that are always called."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    return part.register_forward_pre_hook(stop)


def shown(model: Any, given: dict[str, Any]) -> Any:
    """What the tower says of images."""
    names = {"image_grid_thw", "image_sizes", "image_position_ids"} & given.keys()
    more = {name: given[name] for name in names}
    output = model.get_image_features(given["pixel_values"], **more, return_dict=True).tokenreduce
    return output.class_attention if output.class_attention is not None else output.received_attention


@every_family
def test_ctrl_c_in_the_tower(row: Row) -> None:
    """What it has shown until then is of no later image."""
    method, given = method_of(row), row.inputs(PROMPTS)
    model, other = (patch(fresh(row), method, keep=0.25) for _ in "ab")
    last = [part for part in model.model.get_submodule(row.tower).modules() if isinstance(part, nn.Linear)][-1]
    handle = interrupt(last)
    with pytest.raises(KeyboardInterrupt):
        generate(model, given)
    handle.remove()
    assert torch.equal(generate(model, given).logits[0], generate(other, given).logits[0])
    assert not (_tower._shown.projected or _tower._shown.received or _tower._shown.running)
    handle = interrupt(last)
    with pytest.raises(KeyboardInterrupt):
        generate(model, given)
    handle.remove()
    unpatch(model)
    assert not (_tower._shown.projected or _tower._shown.received or _tower._shown.running)


@every_family
def test_ctrl_c_in_the_language_model(row: Row) -> None:
    """Its run, with the cache, is gone as soon as the model is called again, or unpatched."""
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([PROMPTS[1]])
    expected = generate(model, given)
    for after in ("called", "called inside", "unpatched"):
        handle = interrupt(language_of(model).layers[1])
        with pytest.raises(KeyboardInterrupt):
            generate(model, given)
        handle.remove()
        assert len(runs._thread.runs) == 1
        if after == "called":
            assert torch.equal(generate(model, given).sequences, expected.sequences)
        elif after == "called inside":
            words = torch.tensor([[5, 6, 7, 8]])
            with torch.no_grad():
                out = language_of(model)(input_ids=words).last_hidden_state
                assert torch.equal(out, language_of(fresh(row))(input_ids=words).last_hidden_state)
        else:
            unpatch(model)
        assert runs._thread.runs == []


@pytest.mark.parametrize("reentrant", [True, False])
@every_family
def test_gradient_checkpointing_runs_layers_of_the_tower_again(row: Row, reentrant: bool) -> None:
    """In the backward pass, where nobody asks what they show."""
    model, other = (patch(fresh(row), method_of(row), keep=0.25) for _ in "ab")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    first, second = row.inputs(PROMPTS), row.inputs([(3, "b", 2)], seed=4)
    model(**first).logits.square().mean().backward()
    assert not (_tower._shown.projected or _tower._shown.received or _tower._shown.asked)
    if method_of(row) == "divprune":
        return
    with torch.no_grad():
        assert torch.equal(shown(model, second), shown(other, second))


@every_family
@pytest.mark.parametrize("own", [False, True])
def test_a_cache_that_gradient_checkpointing_leaves_empty(row: Row, own: bool) -> None:
    """It keeps its class, and counts no bytes."""
    model, given = patch(fresh(row), "divprune", keep=0.25).train(), row.inputs(PROMPTS)
    model.gradient_checkpointing_enable()
    cache = DynamicCache(config=model.config) if own else None
    out = model(**given, past_key_values=cache, use_cache=True)
    assert report(model).visual_left < report(model).visual_tokens
    if own and cache is not None and not any(getattr(layer, "keys", None) is not None for layer in cache.layers):
        assert type(cache) is DynamicCache and cache.get_seq_length() == 0 and report(model).kv_bytes == 0
    out.logits.square().mean().backward()
