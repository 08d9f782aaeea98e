"""A patch leaves nothing behind: on the model, between forwards, threads and copies."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from typing import Any

import pytest
import torch
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, generate, language_of, new, shared
from tokenreduce.patches.vision_language import _adapter
from torch import nn
from transformers.cache_utils import DynamicCache

import tokenreduce
from tokenreduce import patch, reduced, report, unpatch
from tokenreduce.forward.language import run as runs

every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]


def traces(model: nn.Module) -> list[str]:
    """What a patch could have left on modules."""
    found = []
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        found += [f"{name}: {hook}" for hook in hooks if hook in (*_adapter.PRE, *_adapter.POST)]
        found += [f"{name}: {key}" for key in vars(module) if "tokenreduce" in key]
    return found


def loose_ends(model: nn.Module) -> int:
    """Entries of the tables that say how hooks are called, whose hooks are gone."""
    return sum(
        len(listed - hooks)
        for module in model.modules()
        for listed, hooks in (
            (module._forward_hooks_with_kwargs.keys(), module._forward_hooks.keys()),
            (module._forward_hooks_always_called.keys(), module._forward_hooks.keys()),
            (module._forward_pre_hooks_with_kwargs.keys(), module._forward_pre_hooks.keys()),
        )
    )


@every_family
def test_unpatching_leaves_the_model_as_it_was(row: Row) -> None:
    model, given = fresh(row), row.inputs(PROMPTS)
    keys = list(model.state_dict())
    patch(model, "divprune", keep=0.25)
    assert list(model.state_dict()) == keys and len(traces(model)) == 8
    generate(model, given)
    unpatch(model)
    assert traces(model) == [] and loose_ends(model) == 0 and unpatch(model) is model
    expected = generate(shared(row.name), given)
    assert all(torch.equal(a, b) for a, b in zip(generate(model, given).logits, expected.logits, strict=True))


@every_family
def test_an_exception_leaves_nothing(row: Row) -> None:
    """In a layer, in the tower and at the door; the cache is that of nobody's forward either."""
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([PROMPTS[1]])
    expected = generate(model, given)

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped")

    core = model.model
    language = language_of(model)
    for part in (language.layers[1], core.get_submodule(row.tower), language):
        handle = part.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="stopped"):
            generate(model, given)
        handle.remove()
        assert runs._thread.runs == []
        again = generate(model, given)
        assert torch.equal(again.sequences, expected.sequences)
    cache = again.past_key_values
    handle = language.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    handle.remove()
    assert not cache.inside and runs._thread.runs == []


@every_family
def test_copies_and_pickles(row: Row) -> None:
    model, given = patch(new(row), "divprune", keep=0.25), row.inputs(PROMPTS)
    written = io.BytesIO()
    torch.save(model, written)
    written.seek(0)
    expected = generate(model, given).sequences
    for other in (copy.deepcopy(model), torch.load(written, weights_only=False)):
        assert torch.equal(generate(other, given).sequences, expected)
        assert report(other).visual_left == report(model).visual_left
        assert traces(unpatch(other)) == []
    assert len(traces(model)) == 8


def test_two_threads() -> None:
    model = patch(fresh(LLAVA), "divprune", keep=0.25)
    given = [LLAVA.inputs([PROMPTS[0]]), LLAVA.inputs([PROMPTS[1]])]
    expected = [generate(model, one).sequences for one in given]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def ask(i: int) -> None:
        for _ in range(4):
            found[i].append(generate(model, given[i]).sequences)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answer, expected[i]) for i in range(2) for answer in found[i]) and len(found[1]) == 4


def test_two_patched_models_in_turn() -> None:
    models = [patch(fresh(LLAVA), "divprune", keep=keep) for keep in (0.25, 0.5)]
    given = LLAVA.inputs(PROMPTS)
    expected = [generate(model, given).sequences for model in models]
    assert [torch.equal(generate(m, given).sequences, e) for m, e in zip(models, expected, strict=True)] == [True] * 2


def test_the_tower_and_what_enters_the_language_model_together() -> None:
    given = LLAVA.inputs(PROMPTS)
    model = fresh(LLAVA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch(model, "tome", ratio=0.5)
    tower_alone = generate(model, given).logits[0]
    patch(model, "divprune", keep=0.25)
    both = generate(model, given)
    shown = report(model)
    assert (shown.visual_left, shown.encoder.tokens_left, shown.encoder.method) == (12, 8, "tome")
    assert "vision tower:" in str(shown) and "divprune" in str(shown)
    with pytest.raises(ValueError, match="both the vision tower and what enters the language model"):
        tokenreduce.save_patch(model, "nowhere.json")
    with reduced(model, "random", keep=0.25):
        assert report(model).method == "random" and report(model).encoder.method == "tome"
    assert torch.equal(generate(model, given).logits[0], both.logits[0])
    unpatch(model.model.vision_tower)
    assert report(model).encoder is None
    unpatch(model)
    assert torch.equal(generate(model, given).logits[0], generate(shared("llava"), given).logits[0])
    assert not torch.equal(tower_alone, both.logits[0])


def test_patching_the_tower_leaves_the_language_models_patch() -> None:
    model = patch(fresh(LLAVA), "divprune", keep=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch(model, "tome", ratio=0.5)
    generate(model, LLAVA.inputs(PROMPTS))
    assert report(model).visual_left == 12 and report(model).encoder.method == "tome"


def test_patching_again_replaces_the_patch_and_a_block_ends() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs(PROMPTS)
    expected = generate(model, given).logits[0]
    with reduced(model, "divprune", keep=0.5):
        assert not torch.equal(generate(model, given).logits[0], expected)
    assert torch.equal(generate(model, given).logits[0], expected)
    patch(model, "random", keep=3)
    assert len(traces(model)) == 8 and report(model).method == "random"


def test_under_autocast_and_in_half_precision() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs(PROMPTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(generate(model, given).logits[0]).all()
    half = model.to(torch.bfloat16)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    assert torch.isfinite(generate(half, given).logits[0]).all() and report(model).visual_left == 12


def test_adapters_of_other_libraries_on_top() -> None:
    peft = pytest.importorskip("peft")
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs(PROMPTS)
    expected = generate(model, given).logits[0]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert torch.allclose(generate(adapted, given).logits[0], expected, atol=1e-6)
    assert report(adapted).visual_left == 12 and traces(unpatch(adapted)) == []


@every_family
def test_every_way_of_calling(row: Row) -> None:
    """Tuples, some hidden states, a cache of the user's, positional ids."""
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs(PROMPTS)
    ids, rest = given["input_ids"], {name: value for name, value in given.items() if name != "input_ids"}
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(**given)
        assert torch.equal(model(**given, return_dict=False)[0], expected.logits)
        assert torch.equal(model(ids, **rest).logits, expected.logits)
        assert torch.equal(model.lm_head(model.model(ids, **rest).last_hidden_state), expected.logits)
        assert torch.equal(model(**given, past_key_values=cache).logits, expected.logits)
        states = model(**given, output_hidden_states=[-2]).hidden_states
    assert cache.get_seq_length() == ids.shape[1] and cache.layers[1].keys.shape[2] == report(model).rows[1]
    assert [None if x is None else x.shape[1] for x in states] == [None, None, ids.shape[1], None]


def test_saved_models_are_plain_ones(tmp_path: Any) -> None:
    model = patch(fresh(LLAVA), "fastv", keep=0.5)
    model.save_pretrained(tmp_path)
    loaded, given = type(model).from_pretrained(tmp_path).eval(), LLAVA.inputs(PROMPTS)
    assert traces(loaded) == [] and loaded.config._attn_implementation == "sdpa"
    assert torch.equal(loaded(**given).logits, shared("llava")(**given).logits)
