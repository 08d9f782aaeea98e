"""What `restore="auto"`, `restore=False` and `prop_attn="auto"` mean for each kind of head: one that reads protected
tokens only must not have all tokens restored for nothing, and one that cannot do without them must say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from backbones import BACKBONES, shared_model
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

CLIP_TEXT = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
CLIP = CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIPVisionConfig(**SMALL))
VIDEO = VideoMAEConfig(**SMALL | {"image_size": 16}, num_frames=4, tubelet_size=4, decoder_num_hidden_layers=1)
# Head classes that no row has.
HEADS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("protected", partial(CLIPModel, CLIP)),
    ("protected", partial(CLIPVisionModelWithProjection, CLIP.vision_config)),
    ("all", partial(BeitForMaskedImageModeling, BeitConfig(**SMALL, vocab_size=20))),
    ("all", partial(ViTForMaskedImageModeling, ViTConfig(**SMALL, encoder_stride=4))),
    ("all", partial(VideoMAEForPreTraining, VIDEO)),
]
CASES = [pytest.param(row.reads, partial(shared_model, row.name), id=row.name) for row in BACKBONES]
CASES += [pytest.param(reads, build, id=build.func.__name__) for reads, build in HEADS]
MASKED_AUTO_ENCODERS = ("VideoMAE", "ViTMAE")


@pytest.mark.parametrize(("reads", "build"), CASES)
def test_tokens_come_back_for_heads_that_read_them_only(reads: str, build: Callable[[], nn.Module]) -> None:
    model = build()
    try:
        patch(model, "random", ratio=0.3)
        reduction = tokenreduce.patching.finding.reduction_of(model)
        assert reduction.restoring.ends == (reads != "protected")
        assert reduction.restoring.taps
        assert reduction.prop_attn == (not type(model).__name__.startswith(MASKED_AUTO_ENCODERS))
        if reads == "all":
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
