from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn

SIZES = {"a": (8, 24), "b": (16, 16)}  # b fills half of two crops


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**sizes, image_size=8, patch_size=4),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 24], [8, 16]],
    )
    return hf.LlavaNextForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    pixels = torch.randn(len(names), 4, 3, 8, 8, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([SIZES[name] for name in names])}


def make_row() -> Row:
    """2 x 2 tokens of the whole, then the crops: 2 x 6 of one, 2 x 2 of the other, each line with its end."""
    return Row(
        "llava_next", build, {"a": (18,), "b": (10,)}, encode, {}, within=True, lasting={"a": (10, 17), "b": (6, 9)}
    )
