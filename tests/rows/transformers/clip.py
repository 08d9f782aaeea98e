from backbones import Backbone
from hugging import SMALL, hf
from transformers import CLIPConfig, CLIPVisionConfig


def make_rows() -> list[Backbone]:
    vision = CLIPVisionConfig(**SMALL)
    both = CLIPConfig(vision_config=vision, num_labels=7)
    parts = {"silence": ("self_attn.out_proj", "mlp.fc2"), "last": "encoder.layers.3.mlp.fc1"}
    return [
        hf(
            "hf_clip_vision",
            "CLIPVisionModel",
            vision,
            **parts,
            positions="embeddings.position_embedding.weight",
            tokens_stay_reduced=True,
        ),
        hf(
            "hf_clip_classifier",
            "CLIPForImageClassification",
            both,
            **parts | {"last": "vision_model.encoder.layers.3.mlp.fc1"},
            positions="vision_model.embeddings.position_embedding.weight",
            reads="tokens",
        ),
    ]
