"""Small models of transformers for dense tasks, saved with their processors as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    DeformableDetrImageProcessor,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    LwDetrConfig,
    LwDetrForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig

CLASSES = 5
NAMES = ("person", "bicycle", "car", "cat", "dog")
SQUARE = {"height": 32, "width": 32}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"image_size": 32, "patch_size": 4}


def save(folder: Path, model: Any, processor: Any, spread: float = 0.2) -> Path:
    """Write both, with weights so large that outputs differ from place to place."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=spread)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def segmenter(folder: Path, classes: int = CLASSES) -> Path:
    neck = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "backbone_out_indices": [0, 1, 2, 3]}
    config = DPTConfig(**SIZES, **neck, intermediate_size=64, num_labels=classes)
    return save(folder, DPTForSemanticSegmentation(config), DPTImageProcessor(size=SQUARE))


def eomt(folder: Path) -> Path:
    sizes = {**SIZES, "num_blocks": 1, "num_queries": 6, "num_upscale_blocks": 1, "mlp_ratio": 2}
    model = EomtForUniversalSegmentation(EomtConfig(**sizes, num_labels=CLASSES))
    model.attn_mask_probs.zero_()
    # As of the semantic checkpoints: images are cut into overlapping squares.
    size = {"shortest_edge": 32, "longest_edge": None}
    return save(folder, model, EomtImageProcessor(size=size, do_split_image=True), 0.4)


def detector(folder: Path) -> Path:
    config = YolosConfig(
        **SIZES | {"image_size": [32, 32]},
        intermediate_size=64,
        num_detection_tokens=12,
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    return save(folder, YolosForObjectDetection(config), YolosImageProcessor(size=SQUARE))


def lw_detr(folder: Path) -> Path:
    vit = LwDetrViTConfig(
        **SIZES, mlp_ratio=2, pretrain_image_size=32, num_windows=4, window_block_indices=[0], out_features=["stage4"]
    )
    config = LwDetrConfig(
        backbone_config=vit,
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=1,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=12,
        group_detr=1,
        c2f_num_blocks=1,
        projector_scale_factors=[1.0],
        num_labels=CLASSES,
    )
    return save(folder, LwDetrForObjectDetection(config), DeformableDetrImageProcessor(size=SQUARE))


def depth(folder: Path, kind: str = "relative") -> Path:
    stages = [f"stage{i}" for i in range(1, 5)]
    vit = Dinov2Config(**SIZES, mlp_ratio=2, out_features=stages, reshape_hidden_states=False)
    config = DepthAnythingConfig(
        backbone_config=vit,
        patch_size=4,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=10 if kind == "metric" else 1,
    )
    processor = DPTImageProcessor(size=SQUARE, keep_aspect_ratio=True, ensure_multiple_of=4)
    return save(folder, DepthAnythingForDepthEstimation(config), processor)
