from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = hf.InternVLVisionConfig(**sizes, image_size=32, patch_size=4, use_qk_norm=True)
    config = hf.InternVLConfig(vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE)
    return hf.InternVLForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(len(names), 3, 32, 32, generator=generator)}


def make_row() -> Row:
    return Row("internvl", build, {"a": (16,), "b": (16,)}, encode, {"a": (4, 4), "b": (4, 4)}, within=True)
