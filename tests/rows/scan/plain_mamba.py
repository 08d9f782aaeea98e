from functools import partial
from typing import Any

from backbones import Backbone, Inputs
from torch import Tensor, nn

from tokenreduce.maps.grid_walks import whole_grid
from tokenreduce.models.plain_mamba import PlainMamba

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 4,
    "states": 8,
    "num_classes": 7,
    "stem_convs": 0,
}


class AllTokens(nn.Module):
    """A model whose tokens are read in raster order, before its last norm."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.backbone = PlainMamba(**SMALL | arguments)

    def forward(self, images: Tensor) -> Tensor:
        x, grid = self.backbone.embed(images)
        for layer in self.backbone.layers:
            x = layer(x, whole_grid(grid, len(x), x.device))
        return x


def other_calls(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    features = model.forward_features(inputs["images"])
    return [features, model.forward_head(features), model.forward_head(features, pre_logits=True)]


def make_rows() -> list[Backbone]:
    row = partial(
        Backbone,
        last="layers.3.mamba.in_proj",
        silence=("mamba.out_proj",),
        argument="images",
        scans="first",
        prefix=0,
        shares=(0.9, 0.75),
        refused_rules=frozenset({"compact", "frozen"}),
        reads="tokens",
    )
    return [
        row("scan_plain_mamba", partial(PlainMamba, **SMALL, depthwise=(0,)), also=other_calls),
        row("scan_plain_mamba_not_square", partial(PlainMamba, **SMALL), grid=(6, 7), also=other_calls),
        row(
            "scan_plain_mamba_tokens",
            AllTokens,
            last="backbone.layers.3.mamba.in_proj",
            collect=lambda model, inputs: [model(**inputs)],
        ),
    ]
