from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    vision = hf.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE)
    return hf.LlavaForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(len(names), 3, 32, 32, generator=generator)}


def make_row() -> Row:
    grids = {"a": (4, 4), "b": (4, 4)}
    return Row("llava", build, {"a": (16,), "b": (16,)}, encode, grids, within=True)
