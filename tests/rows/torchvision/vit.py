from functools import partial
from typing import Any

from backbones import PATCH, Backbone
from hugging import equal_rows
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": PATCH,
    "num_layers": 4,
    "hidden_dim": 32,
    "mlp_dim": 64,
    "num_classes": 7,
}
STEM = [ConvStemConfig(8, 2, 2), ConvStemConfig(16, 2, 2)]  # kernels that do not overlap, for the oracle


def make_rows() -> list[Backbone]:
    row = partial(
        Backbone,
        last="encoder.layers.encoder_layer_3.mlp.0",
        silence=("self_attention.out_proj", "mlp.3"),
        equal_positions=partial(equal_rows, "encoder.pos_embedding", 1),
        argument="x",
    )
    stem = partial(VisionTransformer, **SMALL, num_heads=1, conv_stem_configs=STEM, representation_size=16)
    return [
        row("torchvision_vit", partial(VisionTransformer, **SMALL, num_heads=2)),
        row("torchvision_vit_stem", stem),  # an odd number of heads has no fused kernel
    ]
