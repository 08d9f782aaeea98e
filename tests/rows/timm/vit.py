from backbones import Backbone
from timm.models.vision_transformer import VisionTransformer
from timms import timm_row
from torch import nn


def equal_positions(model: nn.Module) -> None:
    model.pos_embed.data[:, 1:] = model.pos_embed.data[:, 1:2].clone()


def make_rows() -> list[Backbone]:
    """One row: `tests/test_laws.py` has fifteen kinds of this family, in more detail."""
    silence = ("attn.proj", "mlp.fc2")
    return [timm_row("timm_vit", VisionTransformer, {}, silence=silence, equal_positions=equal_positions)]
