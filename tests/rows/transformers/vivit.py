from backbones import PATCH, Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor
from transformers import VivitConfig


def frames_first(backbone: Backbone, images: Tensor) -> Inputs:
    return {"pixel_values": images.transpose(1, 2).contiguous()}


def make_rows() -> list[Backbone]:
    small = {name: value for name, value in SMALL.items() if name not in ("patch_size", "image_size")}
    config = VivitConfig(**small, image_size=16, num_frames=16, tubelet_size=[PATCH] * 3, num_labels=7)
    parts = {
        "silence": ("attention.o_proj", "mlp.fc2"),
        "grid": (4, 4, 4),
        "make_inputs": frames_first,
    }
    return [
        hf(
            "hf_vivit_model",
            "VivitModel",
            config,
            last="layers.3.mlp.fc1",
            positions="embeddings.position_embeddings",
            tokens_stay_reduced=True,
            **parts,
        ),
        hf(
            "hf_vivit",
            "VivitForVideoClassification",
            config,
            last="vivit.layers.3.mlp.fc1",
            positions="vivit.embeddings.position_embeddings",
            **parts,
        ),
    ]
