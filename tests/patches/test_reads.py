"""What follows the layers reads: protected tokens, image tokens, or a place for each of the input's tokens."""

from __future__ import annotations

import pytest
import timm
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from tokenreduce import patch
from tokenreduce.forward.marks import patch_of
from tokenreduce.patching.finding import around, find_backbone

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 4}
IMAGES = {"image_size": 32, "patch_size": 4}
DPT = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "backbone_out_indices": [0, 1, 2, 3]}


def timm_vit(**options) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", embed_dim=32, num_heads=2, depth=2, img_size=32, **options)


class Wrapper(nn.Module):
    """A user's own module around a backbone."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside


CASES = {
    "timm token": (timm_vit, "protected"),
    "timm average": (lambda: timm_vit(global_pool="avg"), "tokens"),
    "timm wrapped": (lambda: Wrapper(timm_vit()), "tokens"),
    "hf bare": (lambda: ViTModel(ViTConfig(**SMALL, **IMAGES)), "protected"),
    "hf container": (lambda: nn.Sequential(ViTModel(ViTConfig(**SMALL, **IMAGES))), "protected"),
    "hf wrapped": (lambda: Wrapper(ViTModel(ViTConfig(**SMALL, **IMAGES))), "tokens"),
    "hf classifier": (lambda: ViTForImageClassification(ViTConfig(**SMALL, **IMAGES)), "protected"),
    "hf masked images": (lambda: ViTForMaskedImageModeling(ViTConfig(**SMALL, **IMAGES, encoder_stride=4)), "all"),
    "hf depth": (lambda: DPTForDepthEstimation(DPTConfig(**SMALL, **IMAGES, **DPT)), "all"),
    "clip bare": (lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL, **IMAGES)), "protected"),
    "clip projection": (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, **IMAGES)), "protected"),
    "siglip pooling": (lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, **IMAGES)), "tokens"),
    "siglip without": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL, **IMAGES, vision_use_head=False)),
        "protected",
    ),
    "beit mean": (lambda: BeitModel(BeitConfig(**SMALL, **IMAGES, use_mean_pooling=True)), "tokens"),
    "beit token": (lambda: BeitModel(BeitConfig(**SMALL, **IMAGES, use_mean_pooling=False)), "protected"),
    "map layers": (lambda: timm.create_model("samvit_base_patch16_224", embed_dim=32, num_heads=2, depth=3), "all"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_decides_what_comes_back(name: str) -> None:
    make, reads = CASES[name]
    model = make()
    path, backbone, adapter = find_backbone(model)
    assert adapter.reads(backbone, around(model, path)) == reads
    for asked, ends in (("auto", reads != "protected"), (True, True), (False, False)):
        if asked is False and reads == "all":
            with pytest.raises(ValueError, match="restore=False leaves no map"):
                patch(model, "pool", ratio=0.5, restore=False)
            continue
        patch(model, "pool", ratio=0.5, restore=asked)
        assert patch_of(backbone).restoring.ends is ends
