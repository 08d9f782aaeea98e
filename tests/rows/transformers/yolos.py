import torch
from backbones import Backbone
from hugging import SMALL, hf
from torch import nn
from transformers import YolosConfig

QUERIES = 3


def equal_image_rows(model: nn.Module) -> None:
    """Positions at the input and between the layers; detection tokens keep theirs."""
    with torch.no_grad():
        for name, table in model.named_parameters():
            if name.endswith("position_embeddings"):
                rows = table[..., 1:-QUERIES, :]
                rows.copy_(rows[..., :1, :].clone().expand_as(rows))


def make_rows() -> list[Backbone]:
    config = YolosConfig(**SMALL | {"image_size": [32, 32]}, num_detection_tokens=QUERIES, num_labels=7)
    parts = {
        "silence": ("output.dense", "encoder.interpolation"),
        "suffix": QUERIES,
        "unmasked": True,
        "equal_positions": equal_image_rows,
    }
    return [
        hf(
            "hf_yolos_model",
            "YolosModel",
            config,
            last="encoder.layer.3.intermediate.dense",
            tokens_stay_reduced=True,
            **parts,
        ),
        hf(
            "hf_yolos",
            "YolosForObjectDetection",
            config,
            last="vit.encoder.layer.3.intermediate.dense",
            **parts,
            reads="tokens",
        ),
    ]
