"""What `restore="auto"`, `restore=False` and `prop_attn="auto"` mean for each kind of head: one that reads protected
tokens only must not have all tokens restored for nothing, and one that cannot do without them must say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from backbones import BY_NAME, shared_model
from hugging import SMALL
from torch import nn
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import tokenreduce
from tokenreduce import InvalidValueError, patch, unpatch

REDUCED, RESTORED, WHOLE = "stay reduced", "all come back", "must come back"
ROWS = {
    REDUCED: (
        "deit3_small_patch16_224 deit_small_distilled_patch16_224 "
        "hf_beit_class_token hf_beit_model hf_clip_vision hf_deit hf_deit_distilled hf_deit_model hf_dinov2_backbone "
        "hf_dinov2_model hf_dinov2_reg_backbone hf_dinov2_reg_model hf_dinov3 hf_dinov3_backbone hf_dpt_model "
        "hf_videomae_model hf_vit hf_vit_mae_model hf_vit_model hf_vitpose_backbone hf_vitpose_experts hf_vivit "
        "hf_vivit_model hf_yolos_model open_clip_clip open_clip_vit timm_beit_only_shared timm_beit_tokens "
        "timm_dinov3 timm_dinov3_tokens timm_eva_post_norm timm_vit timm_vit_dynamic_size timm_vit_gated "
        "timm_vit_not_square timm_vit_post_norm timm_vit_qk_norm timm_vit_short torchvision_vit torchvision_vit_stem "
        "vit_base_patch16_clip_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_tiny_patch16_224"
    ),
    RESTORED: (
        "hf_beit hf_beit_backbone hf_beit_shared hf_clip_classifier hf_dinov2 hf_dinov2_reg hf_siglip "
        "hf_siglip_classifier hf_siglip_vision hf_videomae hf_yolos open_clip_coca open_clip_custom timm_beit "
        "timm_beit_shared timm_eva timm_eva02 timm_eva02_features timm_rope_grouped timm_rope_mixed "
        "timm_vit_average timm_vit_average_registers timm_vit_maximum timm_vit_segmenter vit_base_patch16_siglip_224"
    ),
    WHOLE: (
        "hf_beit_segmentation hf_deit_masked hf_depth_anything hf_dpt hf_dpt_hybrid hf_dpt_segmentation hf_eomt "
        "hf_eomt_unmasked hf_lw_detr hf_lw_detr_backbone hf_sam hf_sam_vision hf_siglip2 hf_siglip2_classifier "
        "hf_siglip2_padded hf_siglip2_vision hf_vit_mae hf_vitdet hf_vitdet_backbone hf_vitdet_convolved "
        "hf_vitdet_plain hf_vitmatte hf_vitpose timm_naflex timm_naflex_padded timm_naflex_padded_mixed "
        "timm_naflex_padded_rope timm_naflex_rope timm_sam timm_sam_global timm_sam_in_a_row timm_sam_padded "
        "timm_sam_rope"
    ),
}
CLIP_TEXT = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
CLIP = CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIPVisionConfig(**SMALL))
VIDEO = VideoMAEConfig(**SMALL | {"image_size": 16}, num_frames=4, tubelet_size=4, decoder_num_hidden_layers=1)
# Head classes that no row has.
HEADS: list[tuple[str, Callable[[], nn.Module]]] = [
    (REDUCED, partial(CLIPModel, CLIP)),
    (REDUCED, partial(CLIPVisionModelWithProjection, CLIP.vision_config)),
    (WHOLE, partial(BeitForMaskedImageModeling, BeitConfig(**SMALL, vocab_size=20))),
    (WHOLE, partial(ViTForMaskedImageModeling, ViTConfig(**SMALL, encoder_stride=4))),
    (WHOLE, partial(VideoMAEForPreTraining, VIDEO)),
]
# A new row needs a line above: whether what follows its layers reads image tokens is a fact of the model.
DECISIONS = {name: decision for decision, names in ROWS.items() for name in names.split()}
CASES = [pytest.param(DECISIONS[name], partial(shared_model, name), id=name) for name in BY_NAME]
CASES += [pytest.param(decision, build, id=build.func.__name__) for decision, build in HEADS]
MASKED_AUTO_ENCODERS = ("VideoMAE", "ViTMAE")


@pytest.mark.parametrize(("decision", "build"), CASES)
def test_tokens_come_back_for_heads_that_read_them_only(decision: str, build: Callable[[], nn.Module]) -> None:
    model = build()
    try:
        patch(model, "random", ratio=0.3)
        reduction = tokenreduce.patching.finding.reduction_of(model)
        assert reduction.restoring.ends == (decision != REDUCED)
        assert reduction.restoring.taps
        assert reduction.prop_attn == (not type(model).__name__.startswith(MASKED_AUTO_ENCODERS))
        if decision == WHOLE:
            with pytest.raises(InvalidValueError, match="takes all tokens; leave it out"):
                patch(model, "random", ratio=0.3, restore=False)
        else:
            patch(model, "random", ratio=0.3, restore=False)
            reduction = tokenreduce.patching.finding.reduction_of(model)
            assert not (reduction.restoring.ends or reduction.restoring.taps)
        patch(model, "random", ratio=0.3, restore=True)
        assert tokenreduce.patching.finding.reduction_of(model).restoring.ends
    finally:
        unpatch(model)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", ["hf_videomae", "hf_vit_mae", "hf_vit", "timm_sam"])
def test_a_wish_about_prop_attn_is_followed(name: str, asked: bool) -> None:
    model = shared_model(name)
    try:
        patch(model, "random", ratio=0.3, prop_attn=asked)
        assert tokenreduce.patching.finding.reduction_of(model).prop_attn is asked
    finally:
        unpatch(model)
