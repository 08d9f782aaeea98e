from functools import partial

import torch
from backbones import PATCH, Backbone, Inputs
from hugging import SMALL, equal_rows, hf
from torch import Tensor
from torch.nn import functional as F
from transformers import VitPoseBackboneConfig, VitPoseConfig


def apart(backbone: Backbone, images: Tensor) -> Inputs:
    """Patches with as many empty pixels behind them, which the library's patches, two pixels aside, do not cut."""
    rows, columns = backbone.grid
    patches = images.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH))
    return {"pixel_values": F.pad(patches, (0, PATCH, 0, 0, 0, PATCH)).flatten(4, 5).flatten(2, 3)}


def with_dataset(backbone: Backbone, images: Tensor) -> Inputs:
    return apart(backbone, images) | {"dataset_index": torch.arange(images.shape[0]) % 3}


def make_rows() -> list[Backbone]:
    small = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    make = partial(
        VitPoseBackboneConfig,
        **small,
        mlp_ratio=2,
        image_size=[64, 64],
        patch_size=[8, 8],
    )
    pose = VitPoseConfig(backbone_config=make(out_indices=[4]), num_labels=5)
    parts = {
        "silence": ("attention.output.dense", "mlp.fc2", "mlp.experts"),
        "prefix": 0,
        "unmasked": True,
        "make_inputs": apart,
    }
    inside = {
        "last": "encoder.layer.3.mlp.fc1",
        "equal_positions": partial(equal_rows, "embeddings.position_embeddings", 1),
    }
    return [
        hf("hf_vitpose_backbone", "VitPoseBackbone", make(out_features=["stage2", "stage4"]), **parts, **inside),
        hf(
            "hf_vitpose_experts",
            "VitPoseBackbone",
            make(out_features=["stage4"], num_experts=3, part_features=8),
            **parts | inside | {"make_inputs": with_dataset},
        ),
        hf(
            "hf_vitpose",
            "VitPoseForPoseEstimation",
            pose,
            last="backbone.encoder.layer.3.mlp.fc1",
            equal_positions=partial(equal_rows, "backbone.embeddings.position_embeddings", 1),
            **parts,
            reads="all",
        ),
    ]
