from functools import partial
from typing import Any

import torch
from backbones import Backbone
from hugging import SMALL, hf
from torch import nn
from transformers import BeitConfig

PARTS: dict[str, Any] = {"silence": ("attention.o_proj", "mlp.fc2"), "biased": True}


def equal_places(model: nn.Module) -> None:
    with torch.no_grad():
        for name, table in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                table[:-3] = table[0].clone()
            if name.endswith("position_embeddings"):
                table[:, 1:] = table[:, 1:2].clone()


def segmentation(config: BeitConfig) -> nn.Module:
    """Has run once: the first call, which adds hooks, is not for compilers, patched or not."""
    from transformers import BeitForSemanticSegmentation

    model = BeitForSemanticSegmentation(config).eval()
    model(torch.zeros(1, 3, 32, 32))
    return model


def without_pooling(config: BeitConfig) -> nn.Module:
    from transformers import BeitModel

    return BeitModel(config, add_pooling_layer=False)


def make_rows() -> list[Backbone]:
    make = partial(BeitConfig, **SMALL, num_labels=7, drop_path_rate=0.0, layer_scale_init_value=0.5)
    own, shared = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
    absolute = make(use_absolute_position_embeddings=True, use_mean_pooling=False)
    stages = make(**own, out_features=["stage2", "stage4"])
    dense = make(**own, out_indices=[1, 2, 3, 4], auxiliary_channels=8, pool_scales=[1, 2])
    row = partial(hf, **PARTS, equal_positions=equal_places)
    return [
        row("hf_beit", "BeitForImageClassification", make(**own), last="beit.layers.3.mlp.fc1", reads="tokens"),
        row(
            "hf_beit_shared",
            "BeitForImageClassification",
            make(**own, **shared),
            last="beit.layers.3.mlp.fc1",
            reads="tokens",
        ),
        row(
            "hf_beit_model",
            without_pooling,
            make(**shared),
            last="layers.3.mlp.fc1",
            tokens_stay_reduced=True,
        ),
        row("hf_beit_class_token", "BeitForImageClassification", absolute, last="beit.layers.3.mlp.fc1"),
        row("hf_beit_backbone", "BeitBackbone", stages, last="beit.layers.3.mlp.fc1", reads="tokens"),
        row("hf_beit_segmentation", segmentation, dense, last="beit.layers.3.mlp.fc1", reads="all"),
    ]
