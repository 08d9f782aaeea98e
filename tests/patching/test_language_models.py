"""A vision tower whose tokens come back before a projector into a language model: `patch` says that nothing is saved
there."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from backbones import BY_NAME, fresh_model
from hugging import SMALL
from torch import nn

from tokenreduce import patch, reduced, report
from tokenreduce.errors import NothingSavedWarning

IMAGE, PLACES = 99, 64  # the id that stands for an image token, and how many of them an image has
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


SMALL_TEXT = {**TEXT, "max_position_embeddings": 16}


def llava(**config: Any) -> nn.Module:
    parts = {"vision_config": hf.CLIPVisionConfig(**SMALL), "text_config": hf.LlamaConfig(**TEXT)}
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(**parts, image_token_index=IMAGE, **config)).eval()


def headless_llava() -> nn.Module:
    return llava().model


def pali_gemma() -> nn.Module:
    parts = {"vision_config": hf.SiglipVisionConfig(**SMALL), "text_config": hf.GemmaConfig(**TEXT, head_dim=16)}
    config = hf.PaliGemmaConfig(**parts, image_token_index=IMAGE, projection_dim=32)
    return hf.PaliGemmaForConditionalGeneration(config).eval()


def captioner() -> nn.Module:
    decoder = hf.TrOCRConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64, vocab_size=100
    )
    parts = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(**SMALL), decoder)
    return hf.VisionEncoderDecoderModel(parts).eval()


def prompt(model: nn.Module) -> dict[str, torch.Tensor]:
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if isinstance(model, hf.VisionEncoderDecoderModel):
        return {"pixel_values": images, "decoder_input_ids": torch.tensor([[1, 2, 3]])}
    ids = torch.tensor([[1, 2, *[IMAGE] * PLACES, 3]])
    return {"input_ids": ids, "pixel_values": images, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("make", [llava, headless_llava, pali_gemma, captioner])
def test_patch_warns_in_one_sentence_and_the_model_runs(make: Any) -> None:
    model = make()
    with pytest.warns(NothingSavedWarning) as said:
        patch(model, "tome", ratio=0.5)
    (warning,) = [w for w in said if w.category is NothingSavedWarning]
    text = str(warning.message)
    assert "restored before the projector into the language model" in text and type(model).__name__ in text
    assert ". " not in text and warning.filename == __file__
    with torch.no_grad():
        assert torch.isfinite(model(**prompt(model))[0]).all()
    assert report(model).tokens[-1] < PLACES


def test_a_tower_whose_hidden_states_are_collected_warns_too() -> None:
    with pytest.warns(NothingSavedWarning, match="CLIPVisionModel"):
        patch(llava(vision_feature_layer=[-2, -3]), "tome", ratio=0.5)


def test_reduced_warns() -> None:
    with pytest.warns(NothingSavedWarning), reduced(llava(), "tome", ratio=0.5):
        pass


def test_as_an_error_the_warning_leaves_the_model_as_it_was() -> None:
    model = llava()
    before = [type(module) for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSavedWarning)
        with pytest.raises(NothingSavedWarning):
            patch(model, "tome", ratio=0.5)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("restore", ["auto", True])
@pytest.mark.parametrize("name", ["hf_vit", "hf_clip_vision", "hf_clip_classifier", "hf_siglip", "timm_vit"])
def test_models_without_a_language_model_do_not_warn(name: str, restore: bool | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSavedWarning)
        patch(fresh_model(BY_NAME[name]), "tome", ratio=0.5, restore=restore)


def test_dual_encoders_and_towers_alone_do_not_warn() -> None:
    both = hf.CLIPConfig(vision_config=hf.CLIPVisionConfig(**SMALL), text_config=hf.CLIPTextConfig(**SMALL_TEXT))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSavedWarning)
        patch(hf.CLIPModel(both).eval(), "tome", ratio=0.5)
        patch(llava().model.vision_tower, "tome", ratio=0.5)


def test_tokens_that_stay_reduced_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingSavedWarning)
        patch(captioner(), "tome", ratio=0.5, restore=False)
