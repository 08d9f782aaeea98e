from backbones import Backbone
from hugging import SMALL, hf
from transformers import ViTConfig


def make_rows() -> list[Backbone]:
    config = ViTConfig(**SMALL, num_labels=7)
    parts = {"silence": ("attention.o_proj", "mlp.fc2")}
    return [
        hf(
            "hf_vit",
            "ViTForImageClassification",
            config,
            last="vit.layers.3.mlp.fc1",
            positions="vit.embeddings.position_embeddings",
            **parts,
        ),
        hf(
            "hf_vit_model",
            "ViTModel",
            config,
            last="layers.3.mlp.fc1",
            positions="embeddings.position_embeddings",
            tokens_stay_reduced=True,
            **parts,
        ),
    ]
