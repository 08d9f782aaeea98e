from functools import partial
from typing import Any

import torch
from backbones import Backbone, Inputs
from torch import Tensor, nn

from tokenreduce.models.vim import VisionMamba

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "states": 8,
    "num_classes": 7,
}


class AllTokens(nn.Module):
    """A model whose image tokens are read in raster order, before its last norm."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.backbone = VisionMamba(**SMALL | arguments)

    def forward(self, images: Tensor) -> Tensor:
        x, place = self.backbone.embed(images), self.backbone.class_place
        for layer in self.backbone.layers:
            x = layer(x)
        return torch.cat([x[:, :place], x[:, place + 1 :]], 1)


def other_calls(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    features = model.forward_features(inputs["images"])
    return [features, model.forward_head(features), model.forward_head(features, pre_logits=True)]


def make_rows() -> list[Backbone]:
    row = partial(Backbone, last="layers.3.mixer.in_proj", silence=("mixer.out_proj",), argument="images")
    return [
        row("scan_vim", partial(VisionMamba, **SMALL), also=other_calls, scans="middle"),
        row("scan_videomamba", partial(VisionMamba, **SMALL, class_token="first"), also=other_calls, scans="first"),
        row(
            "scan_vim_tokens",
            AllTokens,
            last="backbone.layers.3.mixer.in_proj",
            collect=lambda model, inputs: [model(**inputs)],
            scans="middle",
            reads="tokens",
        ),
    ]
