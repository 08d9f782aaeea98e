from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn

from ._gemma import WINDOW, pairs, runs

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = hf.Gemma3TextConfig(**TEXT, head_dim=8, layer_types=LAYERS, sliding_window=WINDOW)
    vision = hf.SiglipVisionConfig(**sizes, image_size=32, patch_size=4)
    config = hf.Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=16, image_token_index=IMAGE)
    return hf.Gemma3ForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(len(names), 3, 32, 32, generator=generator)}


def masks(places: Tensor, blocks: Tensor) -> dict[str, Tensor]:
    return {"full_attention": pairs(places, blocks), "sliding_attention": pairs(places, blocks, WINDOW)}


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).int()}


def make_row() -> Row:
    units, grids = {"a": (16,), "b": (16,)}, {"a": (4, 4), "b": (4, 4)}
    return Row("gemma3", build, units, encode, grids, types=types, blocks=runs, masks=masks)
