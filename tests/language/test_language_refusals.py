"""What is not possible is refused in a sentence that says what is, and the model stays as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from prompting import BY_NAME, PROMPTS, ROWS, TEXT, Row, fresh, generate, language_of, shared
from transformers.cache_utils import DynamicCache

from tokenreduce import Schedule, compatible, patch, report, unpatch

every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA, QWEN = BY_NAME["llava"], BY_NAME["qwen2_vl"]


@every_family
def test_static_caches(row: Row) -> None:
    if row.name == "qwen3_5":
        pytest.skip("has no static cache of this size")
    model = patch(fresh(row), "divprune", keep=0.25)
    with pytest.raises(ValueError, match="a StaticCache holds all tokens, whatever is removed; leave it out"):
        generate(model, row.inputs([PROMPTS[0]]), cache_implementation="static", disable_compile=True)


@every_family
def test_chunked_prefill(row: Row) -> None:
    model = patch(fresh(row), "divprune", keep=0.25)
    with pytest.raises(ValueError, match=r"where each image of these features begins: .* without prefill_chunk_size"):
        generate(model, row.inputs([PROMPTS[0]]), prefill_chunk_size=8)


@every_family
def test_maps_of_attention(row: Row) -> None:
    model, given = fresh(row), row.inputs([PROMPTS[0]])
    model.set_attn_implementation("eager")
    patch(model, "divprune", keep=0.25)
    with pytest.raises(ValueError, match="output_attentions is not possible where tokens leave"):
        model(**given, output_attentions=True)
    assert model(**row.inputs([(5,)]), output_attentions=True).attentions


@every_family
def test_a_reduced_cache_in_an_unpatched_model(row: Row) -> None:
    model = patch(fresh(row), "divprune", keep=0.25)
    cache = generate(model, row.inputs([PROMPTS[0]])).past_key_values
    unpatch(model)
    with pytest.raises(ValueError, match="this cache holds the prompt of a reduced model"):
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_features_of_an_unpatched_model() -> None:
    given = LLAVA.inputs([PROMPTS[0]])
    encoded = shared("llava").get_image_features(given.pop("pixel_values"), return_dict=True)
    with pytest.raises(ValueError, match="encode with this model while it is patched"):
        patch(fresh(LLAVA), "divprune", keep=0.25)(**given, mm_encoder_outputs={"image": encoded})


def test_embeddings_in_the_place_of_ids() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    ids = given.pop("input_ids")
    rows = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="with inputs_embeds it is not known where the images stand"):
        model(inputs_embeds=rows, **given)
    given.pop("pixel_values")
    assert torch.equal(model(inputs_embeds=rows, **given).logits, shared("llava")(inputs_embeds=rows, **given).logits)


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 21, 21), {"full_attention": None}])
def test_masks_of_pairs(mask: Any) -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    with pytest.raises(ValueError, match="takes an attention mask of the prompts' places"):
        model(**given | {"attention_mask": mask})


def test_masks_of_another_length() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    cache = model(**given, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention_mask has 4 places, but cache and prompt have 22"):
        model(input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 4), past_key_values=cache)


def test_packed_sequences() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    with pytest.raises(ValueError, match="takes no packed sequences"):
        model(**given, cu_seq_lens_q=torch.tensor([0, 21]))


def test_numbers_that_do_not_fit_are_the_models_own_error() -> None:
    given = LLAVA.inputs([PROMPTS[1]])
    given["pixel_values"] = given["pixel_values"][:1]
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        patch(fresh(LLAVA), "divprune", keep=0.25)(**given)


def test_later_turns_of_unequal_prompts_with_linear_attention() -> None:
    row = BY_NAME["qwen3_5"]
    model, given = patch(fresh(row), "divprune", keep=0.25), row.inputs([(4,), (4,)])
    cache = model(**given, use_cache=True).past_key_values
    later = row.inputs([(2, "a", 3), (2, "b", 3)])
    later["attention_mask"] = torch.cat([torch.ones(2, 4, dtype=torch.long), later["attention_mask"]], 1)
    with pytest.raises(ValueError, match="layers with linear attention cannot take a batch of later turns"):
        model(**later, past_key_values=cache, position_ids=torch.arange(4, 25).expand(3, 2, -1))


@pytest.mark.parametrize(
    ("keep", "error", "sentence"),
    [
        (0.0, ValueError, r"keep is 0\.0; as a share it lies in \(0, 1\]"),
        (1.5, ValueError, r"keep is 1\.5; as a share it lies in \(0, 1\]"),
        (0, ValueError, "keep is 0; at least one token of each image is left"),
        (True, TypeError, "keep is True; it must be a share"),
        ("0.1", TypeError, "keep is '0.1'; it must be a share"),
    ],
)
def test_budgets_that_are_none(keep: Any, error: type[Exception], sentence: str) -> None:
    model = fresh(LLAVA)
    with pytest.raises(error, match=sentence):
        patch(model, "divprune", keep=keep)
    with pytest.raises(ValueError, match="is not patched"):
        report(model)


@pytest.mark.parametrize(
    "more",
    [
        {"ratio": 0.5},
        {"flops": 0.5},
        {"r": 2},
        {"schedule": Schedule.keep({0: 0.5})},
        {"layers": [0]},
        {"restore": True},
        {"prop_attn": False},
    ],
    ids=str,
)
def test_arguments_of_the_tower(more: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(more))} was given, but the budget of a language model is keep="):
        patch(fresh(LLAVA), "divprune", keep=0.25, **more)


def test_positions() -> None:
    with pytest.raises(ValueError, match="rotates tokens by time, height and width"):
        patch(fresh(QWEN), "divprune", keep=0.25, positions="renumber")
    with pytest.raises(ValueError, match="positions is 'new'; valid: \"auto\", 'keep', 'renumber'"):
        patch(fresh(LLAVA), "divprune", keep=0.25, positions="new")
    with pytest.raises(TypeError, match="positions='keep' is for what enters a language model"):
        patch(fresh(LLAVA), "tome", ratio=0.25, positions="keep")


def test_methods_of_vision_transformers() -> None:
    for method, sentence in (("evit", "for the layers of a vision transformer"), ("gtp", "methods that fit: atc")):
        with pytest.raises(ValueError, match=sentence):
            patch(fresh(LLAVA), method, keep=0.25)
    model = fresh(LLAVA)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="its class token is one of the features that it ranks"):
        patch(model, "fastervlm", keep=0.25)
    with pytest.raises(ValueError, match="it needs received_attention, but its vision tower does not show what its"):
        patch(model, "kmeans", keep=0.25, weights="attention")
    with pytest.raises(ValueError, match="it needs crops, but it is not known of which crop each of"):
        patch(fresh(LLAVA), "globalcom2", keep=0.25)


def test_grids_that_are_not_known() -> None:
    model = fresh(LLAVA)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="it needs grid, but its images' tokens are no known grid"):
        patch(model, "pool", keep=0.25)
    assert "pool" not in compatible(model).language
    with pytest.raises(
        ValueError, match=r"pool needs the tokens to be a grid \(H, W\), .* it pools nothing: use another"
    ):
        generate(patch(fresh(QWEN), "pool", keep=0.25), QWEN.inputs([(2, "video", 3)]))


def test_other_models() -> None:
    known = "known, of transformers: " + ", ".join(sorted(row.name for row in ROWS))
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    parts = {"vision_config": hf.SiglipVisionConfig(**sizes), "text_config": hf.LlamaConfig(**TEXT)}
    config = hf.AyaVisionConfig(**parts, downsample_factor=2)
    for model in (vit, hf.AyaVisionForConditionalGeneration(config)):
        with pytest.raises(ValueError, match=rf"no vision-language model that tokenreduce knows \({known}\)"):
            patch(model, "divprune", keep=0.25)
    with pytest.raises(ValueError, match=r"is of no family that tokenreduce knows; give keep=0\.1"):
        patch(fresh(QWEN), "tome", ratio=0.5)
    assert compatible(fresh(QWEN)) == [] and "keep=" in repr(compatible(fresh(QWEN)))


def test_other_attention_implementations() -> None:
    model = fresh(LLAVA)
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2', with which removing was never tried"):
        patch(model, "divprune", keep=0.25)


@every_family
def test_an_attention_implementation_that_came_later(row: Row) -> None:
    """It is asked for where something leaves, or has left."""
    model = patch(fresh(row), "divprune", keep=0.25)
    cache = generate(model, row.inputs([PROMPTS[0]])).past_key_values
    language_of(model).config._attn_implementation = "flash_attention_2"
    for given in (row.inputs([PROMPTS[0]]), {"input_ids": torch.tensor([[5]]), "past_key_values": cache}):
        with pytest.raises(ValueError, match=r"'flash_attention_2', with which removing was never tried"):
            model(**given)


def test_features_that_are_no_dict() -> None:
    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    with pytest.raises(TypeError, match="mm_encoder_outputs is a Tensor; it must be a dict"):
        model(**given | {"pixel_values": None, "mm_encoder_outputs": torch.zeros(1, 16, 32)})


def test_other_caches() -> None:
    class OtherCache(DynamicCache):
        pass

    model, given = patch(fresh(LLAVA), "divprune", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    with pytest.raises(ValueError, match="a OtherCache was never tried with fewer tokens; leave it out"):
        model(**given, past_key_values=OtherCache())


@pytest.mark.parametrize("method", ["fastv", "fastervlm"])
def test_methods_of_language_models_without_a_budget(method: str) -> None:
    with pytest.raises(TypeError, match=f"{method} reduces what enters a language model: give keep="):
        patch(fresh(LLAVA), method)


LAYERS = {"llava": 3, "internvl": 2}  # of the towers


@pytest.mark.parametrize("name", LAYERS)
def test_features_of_another_layer_than_their_attention(name: str) -> None:
    row = BY_NAME[name]
    model, given = fresh(row), row.inputs([PROMPTS[0]])
    own = model.config.vision_feature_layer
    sentence = rf"features are taken, which is \[{own}\] in the configuration, but vision_feature_layer=\[1\]"
    for method, read in (("fastervlm", True), ("divprune", False)):
        patch(model, method, keep=0.25)
        for same in (own, own + 1 + LAYERS[name]):  # the same layer, counted from the start
            assert torch.isfinite(model(**given, vision_feature_layer=same).logits).all()
        for call in (model, lambda **more: generate(model, more)):
            if read:
                with pytest.raises(ValueError, match=sentence):
                    call(**given, vision_feature_layer=1)
            else:
                call(**given, vision_feature_layer=1)


def test_features_of_several_layers_by_other_numbers() -> None:
    config = fresh(LLAVA).config.to_dict() | {"vision_feature_layer": [-3, -2]}
    model = type(fresh(LLAVA))(type(fresh(LLAVA).config).from_dict(config)).eval()
    model, given = patch(model, "fastervlm", keep=0.25), LLAVA.inputs([PROMPTS[0]])
    for same in ([1, 2], [-3, 2], [1, -2]):
        assert torch.isfinite(model(**given, vision_feature_layer=same).logits).all()
    for other in ([2, 1], [-2, -3], [1, 3]):
        with pytest.raises(ValueError, match=r"which is \[-3, -2\] in the configuration, but vision_feature_layer="):
            model(**given, vision_feature_layer=other)


def test_the_warning_of_the_tower_names_the_budget() -> None:
    with pytest.warns(UserWarning, match=r"keep=0\.1 instead of the budget"):
        patch(fresh(LLAVA), "tome", ratio=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(fresh(LLAVA), "tome", keep=0.5)
