from functools import partial
from typing import Any

from backbones import Backbone, Inputs
from hugging import SMALL, equal_rows, hf
from torch import Tensor, nn
from transformers import LwDetrConfig
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig

CONFIG: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {
    "num_hidden_layers": 5,
    "mlp_ratio": 4,
    "pretrain_image_size": 32,
    "num_windows": 4,
    "window_block_indices": [0, 3],
}


def vit(config: LwDetrViTConfig) -> nn.Module:
    from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone

    return LwDetrViTBackbone(config)


def maps(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [feature_map.flatten(2).transpose(1, 2) for feature_map in model(**inputs).feature_maps]


def detections(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Other outputs do not begin with the batch."""
    out = model(**inputs)
    return [out.logits, out.pred_boxes, out.enc_outputs_class, out.last_hidden_state]


def make_rows() -> list[Backbone]:
    parts = {
        "silence": ("attention.o_proj", "intermediate.fc2"),
        "prefix": 0,
        "shares": (0.9, 0.8),
    }
    config = LwDetrViTConfig(**CONFIG, out_features=[f"stage{i}" for i in range(1, 6)])
    detector = LwDetrConfig(
        backbone_config=LwDetrViTConfig(**CONFIG, out_features=["stage2", "stage5"]),
        d_model=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2,
        num_queries=6,
        group_detr=2,
        c2f_num_blocks=1,
        projector_scale_factors=[1.0],
        num_labels=5,
    )
    return [
        hf(
            "hf_lw_detr_backbone",
            vit,
            config,
            last="encoder.layer.4.intermediate.fc1",
            equal_positions=partial(equal_rows, "embeddings.position_embeddings", 1),
            collect=maps,
            **parts,
            reads="all",
        ),
        hf(
            "hf_lw_detr",
            "LwDetrForObjectDetection",
            detector,
            last="model.backbone.backbone.encoder.layer.4.intermediate.fc1",
            equal_positions=partial(equal_rows, "model.backbone.backbone.embeddings.position_embeddings", 1),
            collect=None,
            outputs=detections,
            **parts,
            reads="all",
        ),
    ]
