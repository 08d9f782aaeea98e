from functools import partial

from backbones import Backbone
from hugging import LAYERSCALE, SMALL, equal_rows, hf
from transformers import Dinov2WithRegistersConfig


def make_rows() -> list[Backbone]:
    make = partial(Dinov2WithRegistersConfig, **SMALL, **LAYERSCALE, num_register_tokens=3, num_labels=7)
    # Registers have no positions.
    inside = {
        "silence": ("layer_scale1", "layer_scale2"),
        "prefix": 4,
        "last": "encoder.layer.3.mlp.fc1",
        "equal_positions": partial(equal_rows, "embeddings.position_embeddings", 1),
    }
    held = inside | {
        "last": "dinov2_with_registers.encoder.layer.3.mlp.fc1",
        "equal_positions": partial(equal_rows, "dinov2_with_registers.embeddings.position_embeddings", 1),
    }
    stages = make(out_features=["stage2", "stage4"])
    return [
        hf("hf_dinov2_reg_model", "Dinov2WithRegistersModel", make(), **inside, tokens_stay_reduced=True),
        hf("hf_dinov2_reg", "Dinov2WithRegistersForImageClassification", make(), **held, reads="tokens"),
        hf("hf_dinov2_reg_backbone", "Dinov2WithRegistersBackbone", stages, **inside),
    ]
