"""What a method reads of the vision tower is that of the very image, also with beams and several images a prompt."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf
from by_hand import by_divprune, by_hand, by_map, greedy
from prompting import BY_NAME, IMAGE, PROMPTS, TEXT, Row, fresh, generate, new, shared
from tokenreduce.patches.vision_language import _adapter, _tower
from torch import Tensor

from tokenreduce import compatible, patch, report, unpatch

LLAVA, STEPS = BY_NAME["llava"], 5
some_families = pytest.mark.parametrize("row", [LLAVA, BY_NAME["internvl"]], ids=lambda row: row.name)


def scores(row: Row, given: dict[str, Tensor], model: Any) -> Tensor:
    """`(images, 16)`: the class token's attention in the tower's eager maps, in the layers whose states are taken; the
    mean over the tower's tokens behind each."""
    vision = model.model.vision_tower
    before, taken = vision.config._attn_implementation, model.config.vision_feature_layer
    vision.set_attn_implementation("eager")
    with torch.no_grad():
        maps = vision(given["pixel_values"], output_attentions=True).attentions
    vision.set_attn_implementation(before)
    states = [taken] if isinstance(taken, int) else taken
    found = torch.stack([maps[state % (len(maps) + 1) - 1][:, :, 0, 1:].mean(1) for state in states]).mean(0)
    return torch.stack([found[:, [*places]].mean(1) for places in behind(found.shape[1])], 1)


def behind(n: int) -> list[tuple[int, ...]]:
    """The tower's tokens, of n in a square, behind each of 16."""
    side = int(n**0.5)
    group = side // 4
    return [
        tuple((group * i + y) * side + group * j + x for y in range(group) for x in range(group))
        for i in range(4)
        for j in range(4)
    ]


@pytest.mark.parametrize("layer", [-2, -1, [-3, -2]], ids=str)
def test_the_attention_of_the_layer_whose_features_are_taken(layer: Any) -> None:
    model, given = fresh(LLAVA), LLAVA.inputs(PROMPTS)
    if isinstance(layer, list):
        config = model.config.to_dict() | {"vision_feature_layer": layer}
        model = type(model)(type(model.config).from_dict(config)).eval()
        torch.nn.init.normal_(model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight)
    model.config.vision_feature_layer = layer
    expected = scores(LLAVA, given, model)
    patch(model, "fastervlm", keep=0.25)
    found = model.get_image_features(given["pixel_values"], return_dict=True).tokenreduce.class_attention[:, 1:]
    assert torch.allclose(found, expected, atol=1e-6) and expected.std() > 0


def test_the_mean_over_all_layers() -> None:
    """Until the one whose features are taken: -2 of three layers."""
    model, given = fresh(LLAVA), LLAVA.inputs(PROMPTS)
    model.model.vision_tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(given["pixel_values"], output_attentions=True).attentions
    expected = torch.stack([each[:, :, 0, 1:].mean(1) for each in maps[:2]]).mean(0)
    patch(model, "fastervlm", keep=0.25, tower_layers="all")
    found = model.get_image_features(given["pixel_values"], return_dict=True).tokenreduce.class_attention[:, 1:]
    assert torch.allclose(found, expected, atol=1e-6) and len(maps) == 3
    generate(model, given)
    assert report(model).visual_left == 12 and ours(model) == 5 and ours(unpatch(model)) == 0


def kept_by(attention: Tensor) -> Any:
    def choose(x: Tensor, keep: int, grid: Any) -> Any:
        row = next(rows)
        kept = sorted(row.topk(keep).indices.tolist())
        return kept, torch.eye(len(x))[kept]

    rows = iter(attention)
    return choose


@some_families
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_fastervlm_equals_deletion_by_hand(row: Row, way: dict[str, Any]) -> None:
    model = patch(fresh(row), "fastervlm", keep=0.25)
    together = generate(model, row.inputs(PROMPTS), STEPS, **way).sequences[:, -STEPS:].tolist()
    alone = [generate(model, row.inputs([p]), STEPS, **way).sequences[:, -STEPS:].tolist() for p in PROMPTS]
    assert together == [answer for answers in alone for answer in answers]
    if not way:
        for prompt, answers in zip(PROMPTS, alone, strict=True):
            given = row.inputs([prompt])
            attention = scores(row, given, fresh(row)) if "pixel_values" in given else torch.zeros(0)
            sequence = by_hand(shared(row.name), row, prompt, 0.25, kept_by(attention), True)
            assert answers == [greedy(shared(row.name), sequence, STEPS)[0]]


def ours(model: Any) -> int:
    """Hooks of ours in the tower."""
    hooks = [hook for module in model.model.vision_tower.modules() for hook in module._forward_hooks.values()]
    return sum(hook in _adapter.POST for hook in hooks)


def test_hooks_on_the_tower_are_gone_after_unpatching() -> None:
    model = patch(fresh(LLAVA), "fastervlm", keep=0.25)
    assert ours(model) == 3
    patch(model, "divprune", keep=0.25)
    assert ours(model) == 1
    assert ours(unpatch(model)) == 0


def test_towers_without_a_class_token() -> None:
    assert "fastervlm" in compatible(shared("llava")).language
    assert "fastervlm" not in compatible(shared("qwen2_vl")).language
    with pytest.raises(ValueError, match="it needs class_attention, but its vision tower has no class token"):
        patch(fresh(BY_NAME["qwen2_vl"]), "fastervlm", keep=0.25)


@pytest.mark.parametrize("method", ["fastervlm", "todre"])
def test_a_tower_that_is_reduced_itself(method: str) -> None:
    """Its facts are of other tokens; `todre` would do without them where there are none."""
    model = fresh(LLAVA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch(model, "tome", r=2)
    patch(model, method, keep=0.25)
    with pytest.raises(ValueError, match="the vision tower has not shown the class_attention of each of these tokens"):
        generate(model, LLAVA.inputs(PROMPTS))
    unpatch(model.model.vision_tower)
    generate(model, LLAVA.inputs(PROMPTS))
    assert report(model).visual_left == 12


def test_nothing_is_kept_after_an_exception_in_the_tower() -> None:
    model, given = patch(fresh(LLAVA), "fastervlm", keep=0.25), LLAVA.inputs([PROMPTS[0]])

    def fail(*_: Any) -> None:
        raise RuntimeError("stopped")

    handle = model.model.vision_tower.encoder.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        generate(model, given)
    handle.remove()
    assert _tower._shown.projected == [] and not _tower._shown.asked
    generate(model, given)


@pytest.mark.parametrize("method", ["divprune", "pool", "kmeans"])
def test_images_of_their_own_sizes(method: str) -> None:
    """Pixtral's, in LLaVA."""

    def build() -> Any:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        parts = {"vision_config": hf.PixtralVisionConfig(**sizes, image_size=48, patch_size=8)}
        parts |= {"text_config": hf.MistralConfig(**TEXT, sliding_window=None)}
        features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        return hf.LlavaForConditionalGeneration(hf.LlavaConfig(**parts, **features, image_token_index=IMAGE))

    row = replace(BY_NAME["mistral3"], build=build)  # patches of twice the side, which are not merged
    model, unpatched = patch(new(row), method, keep=0.25), new(row)
    choose = by_divprune if method == "divprune" else by_map(method)
    for way in ({}, {"num_beams": 3}):
        out = generate(model, row.inputs(PROMPTS), STEPS, **way)
        for i, prompt in enumerate(PROMPTS):
            alone = generate(model, row.inputs([prompt]), STEPS, **way).sequences[0, -STEPS:].tolist()
            assert out.sequences[i, -STEPS:].tolist() == alone
            if not way:
                left = by_hand(unpatched, row, prompt, 0.25, choose, method == "divprune")
                ids, logits = greedy(unpatched, left, STEPS)
                assert alone == ids and (torch.stack(out.logits)[:, i] - logits).abs().max() <= 1e-5
    assert "fastervlm" not in compatible(model).language
