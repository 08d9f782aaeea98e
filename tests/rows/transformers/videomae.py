import torch
from backbones import PATCH, Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import VideoMAEConfig


def frames_first(backbone: Backbone, images: Tensor) -> Inputs:
    return {"pixel_values": images.transpose(1, 2).contiguous()}


def no_positions(model: nn.Module) -> None:
    embeddings = getattr(model, "videomae", model).embeddings
    embeddings.position_embeddings = torch.zeros_like(embeddings.position_embeddings)


def make_rows() -> list[Backbone]:
    config = VideoMAEConfig(**SMALL | {"image_size": 16}, num_frames=16, tubelet_size=PATCH, num_labels=7)
    parts = {
        "silence": ("output.dense",),
        "grid": (4, 4, 4),
        "prefix": 0,
        "unmasked": True,
        "make_inputs": frames_first,
        "equal_positions": no_positions,
    }
    return [
        hf(
            "hf_videomae_model",
            "VideoMAEModel",
            config,
            last="encoder.layer.3.intermediate.dense",
            tokens_stay_reduced=True,
            **parts,
        ),
        hf(
            "hf_videomae",
            "VideoMAEForVideoClassification",
            config,
            last="videomae.encoder.layer.3.intermediate.dense",
            **parts,
            reads="tokens",
        ),
    ]
