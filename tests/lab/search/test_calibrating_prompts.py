"""`calibrate` on prompts with images: what each layer of a language model keeps of them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from prompting import BY_NAME, IMAGE, TEXT, fresh, generate, new
from torch import Tensor

from tokenreduce import calibrate, load_patch, patch, report, unpatch
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.search.least_counts import least_counts
from tokenreduce.lab.search.prompt_trials import PromptTrials
from tokenreduce.lab.search.trials import Variant

LLAVA, DEPTH, READ = BY_NAME["llava"], 6, 4


def build() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=hf.LlamaConfig(**TEXT | {"num_hidden_layers": DEPTH}),
        image_token_index=IMAGE,
    )
    return hf.LlavaForConditionalGeneration(config)


@cache
def planted() -> Any:
    """Its last two layers read nothing of other words: there images may leave for nothing, earlier they may not."""
    model = new(replace(LLAVA, name="planted", build=build))
    with torch.no_grad():
        for layer in model.model.language_model.layers[READ:]:
            layer.self_attn.o_proj.weight.zero_()
    return model


def whole() -> Any:
    """All of its layers read."""
    return new(replace(LLAVA, name="whole", build=build))


def prompts(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    return [LLAVA.inputs([(2 + i % 3, "a", 3)], seed=seed + i) for i in range(count)]


def trials(some: list[dict[str, Tensor]], model: Any = None) -> PromptTrials:
    model = planted() if model is None else model
    return PromptTrials(model, Variant("fastv"), some, [[i] for i in range(len(some))], Journal())


def divergence(model: Any, given: dict[str, Tensor], keep: dict[int, float]) -> float:
    """Of the next word, in loops."""
    with torch.no_grad():
        p = unpatch(model)(**given).logits[0, -1].double().softmax(0).tolist()
        q = patch(model, "fastv", keep=keep)(**given).logits[0, -1].double().softmax(0).tolist()
    unpatch(model)
    return sum(a * (torch.tensor(a / b).log().item()) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("how", [{"trials": 12, "greedy": False}, {"greedy": True}], ids=["sigmoids", "layer by layer"])
def test_a_planted_schedule_is_found(how: dict[str, Any]) -> None:
    """At 70 % of the tokens the default lets them leave where they are still read."""
    model = planted()
    found = calibrate(model, prompts(24), keep=0.7, **how)
    assert found.improved and found.method == "fastv" and 0.6 < found.flops_share <= 0.7
    assert set(found.keep) <= set(range(1, DEPTH))
    default = trials(prompts(2)).own(Variant("fastv"), 0.7)
    own = dict(default.schedule.events)
    assert set(own) == {2} and default.share <= 0.7
    fresh_ones = prompts(12, seed=100)
    errors = [sum(divergence(model, given, keep) for given in fresh_ones) for keep in (found.keep, own)]
    assert errors[0] < errors[1] / 2
    before = 1.0
    for layer in range(READ):
        before *= found.keep.get(layer, 1.0)
    assert before > own[2]  # more is left where images are read


def test_errors_are_divergences_of_the_next_word() -> None:
    some, keep = prompts(3), {1: 0.75, 3: 0.5}
    measured = trials(some)
    candidate = measured.counted(Variant("fastv"), (16, 12, 12, 6, 6, 6))
    assert dict(candidate.schedule.events) == keep and candidate.share == 58 / 96
    errors = measured.errors(candidate, [0, 1, 2])
    expected = [divergence(planted(), given, keep) for given in some]
    assert errors.shape == (3, 1) and errors[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) > 1e-6
    late = measured.counted(Variant("fastv"), (16, 16, 16, 16, 1, 1))
    assert measured.errors(late, [0, 1, 2]).abs().max() < 1e-9


def test_the_last_word_stands_before_padding() -> None:
    measured, prompt = trials(prompts(1)), prompts(1)[0]
    longer = dict(prompt)
    for name, value in (("input_ids", 0), ("attention_mask", 0)):
        longer[name] = torch.cat([prompt[name], torch.full((1, 3), value)], 1)
    assert torch.allclose(measured._next_word(longer), measured._next_word(prompt), atol=1e-6)


def test_the_least_share_below_an_error() -> None:
    """What is not read may leave: of 6 layers the last two, so that about 4 / 6 of the tokens have to stay."""
    found = calibrate(planted(), prompts(24), error=1e-5)
    assert 4 / 6 < found.flops_share < 0.72 and min(found.keep) >= 3
    errors = [divergence(planted(), given, found.keep) for given in prompts(12, seed=100)]
    assert sum(errors) / len(errors) < 1e-5
    measured = trials(prompts(3))
    counts = least_counts(measured, Variant("fastv"), 1e-5, [0, 1, 2])
    assert counts is not None and counts.found[-2:] == (1 / 16, 1 / 16) and min(counts.found[:3]) > 0.8
    assert least_counts(measured, Variant("fastv"), 0.0, [0, 1, 2]) is not None  # nothing is lost after the last read
    with pytest.raises(ValueError, match=r"error=1e-12 is not kept .* even at keep=0\.98"):
        calibrate(whole(), prompts(24), error=1e-12)


def test_the_result_is_a_patch(tmp_path: Any) -> None:
    model = planted()
    found = calibrate(model, prompts(12), keep=0.7, greedy=False)
    found.save(tmp_path / "keep.json")
    data = json.loads((tmp_path / "keep.json").read_text())
    assert data["calibration"]["image_tokens"] == 16 and data["calibration"]["token_share"] <= 0.7
    given = prompts(1)[0]
    expected = generate(patch(model, **found.arguments), given).logits[0]
    unpatch(model)
    for load in (load_patch, lambda model, path: patch(model, schedule=path)):
        again = load(model, tmp_path / "keep.json")
        assert torch.equal(generate(again, given).logits[0], expected)
        assert report(again).to_json()["tokens"] == [int(n) for n in data["calibration"]["tokens"]]
        unpatch(model)
    assert "of the image tokens, mean over the layers" in str(found)


def test_the_model_stays_as_it_was() -> None:
    model = patch(new(replace(LLAVA, name="planted", build=build)).train(), "divprune", keep=0.5)
    model.model.vision_tower.eval()  # as people freeze parts of a model that they train
    before = [module.training for module in model.modules()]
    calibrate(model, prompts(4), keep=0.7, greedy=False)
    assert report(model).method == "divprune" and model.training
    assert [module.training for module in model.modules()] == before


def test_methods_without_text_may_begin_before_the_model() -> None:
    found = calibrate(planted(), prompts(4), keep=0.4, methods=["divprune"], greedy=False)
    assert found.method == "divprune" and found.flops_share <= 0.4
    measured = trials(prompts(1))
    with pytest.raises(ValueError, match="fastv reads the attention of the layer before, and layer 0 has none"):
        measured.counted(Variant("fastv"), (8, 8, 8, 8, 8, 8))
    with pytest.raises(ValueError, match=r"fastv keeps 0\.375 of the image tokens at least"):
        measured.own(Variant("fastv"), 0.2)


@pytest.mark.parametrize(
    ("more", "error", "sentence"),
    [
        ({"flops": 0.5}, TypeError, r"counted in tokens: give keep=0\.3 instead of flops"),
        ({"keep": 0.5, "error": 0.1}, TypeError, "give exactly one of keep and error, for example keep=0.6"),
        ({"keep": 1.0}, ValueError, r"keep is 1\.0; it lies between 0 and 1"),
        (
            {"keep": 0.5, "methods": ["fastv", "evit"]},
            ValueError,
            "evit cannot run on this model: it is for the layers",
        ),
        ({"keep": 0.5, "methods": "fastv"}, TypeError, "give a list, such as"),
        ({"error": 0.1, "methods": "fastv"}, TypeError, "give a list, such as"),
        ({"keep": 0.5, "methods": []}, ValueError, "methods is empty"),
        ({"keep": 0.5, "device": "cpu"}, TypeError, "prompts run where the model is"),
        ({"error": 0.1, "methods": ["fastv", "divprune"]}, TypeError, "name one method"),
        ({"error": 0.1, "trials": 3}, TypeError, "leave out trials and greedy"),
        ({"error": 0.1, "greedy": False}, TypeError, "leave out trials and greedy"),
    ],
)
def test_what_is_refused(more: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        calibrate(planted(), prompts(2), **more)


def test_what_are_no_prompts() -> None:
    with pytest.raises(TypeError, match="keep is for prompts with images"):
        calibrate(planted(), torch.zeros(2, 3, 32, 32), keep=0.5)
    with pytest.raises(ValueError, match=r"prompt 0 has no input_ids \(1, n\)"):
        calibrate(planted(), [LLAVA.inputs([(2, "a"), (3, "a")])] * 2, keep=0.5)
    with pytest.raises(ValueError, match="the first prompt has no image"):
        calibrate(planted(), [LLAVA.inputs([(5,)])] * 2, keep=0.5)
    with pytest.raises(ValueError, match=r"there is nothing to search in this Qwen3VL.*: tokens leave only before"):
        calibrate(fresh(BY_NAME["qwen3_vl"]), prompts(2), keep=0.5)
