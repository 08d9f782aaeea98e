from collections.abc import Sequence
from typing import Any

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn

from ._gemma import pairs


def build(text: Any = hf.GemmaConfig, **more: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=text(**TEXT, head_dim=8, **more),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(len(names), 3, 32, 32, generator=generator)}


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": torch.zeros_like(ids)}


def blocks(ids: list[int]) -> list[int]:
    """The prompt is one."""
    return [0] * len(ids)


def make_row() -> Row:
    units, grids = {"a": (16,), "b": (16,)}, {"a": (4, 4), "b": (4, 4)}
    more = {"types": types, "start": 1, "blocks": blocks, "prefix": True, "masks": pairs}
    return Row("paligemma", build, units, encode, grids, **more)
