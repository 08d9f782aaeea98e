import torch
from backbones import Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipTextConfig, SiglipVisionConfig


def with_text(backbone: Backbone, images: Tensor) -> Inputs:
    return {"pixel_values": images, "input_ids": torch.arange(8).expand(images.shape[0], -1).contiguous()}


def images_only(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """What does not compare the images of a batch with its texts."""
    out = model(**inputs)
    return [out.image_embeds, out.vision_model_output.last_hidden_state, out.text_embeds]


def make_rows() -> list[Backbone]:
    vision = SiglipVisionConfig(**SMALL)
    text = SiglipTextConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=20,
        max_position_embeddings=8,
        bos_token_id=None,
        eos_token_id=None,
    )
    both = SiglipConfig(vision_config=vision, text_config=text, num_labels=7)
    parts = {"silence": ("self_attn.out_proj", "mlp.fc2"), "prefix": 0}
    held = {
        "last": "vision_model.encoder.layers.3.mlp.fc1",
        "positions": "vision_model.embeddings.position_embedding.weight",
    }
    return [
        hf(
            "hf_siglip_vision",
            "SiglipVisionModel",
            vision,
            last="encoder.layers.3.mlp.fc1",
            positions="embeddings.position_embedding.weight",
            **parts,
            reads="tokens",
        ),
        hf("hf_siglip_classifier", "SiglipForImageClassification", both, **held, **parts, reads="tokens"),
        hf(
            "hf_siglip",
            "SiglipModel",
            both,
            **held,
            **parts,
            make_inputs=with_text,
            outputs=images_only,
            collect=None,
            reads="tokens",
        ),
    ]
