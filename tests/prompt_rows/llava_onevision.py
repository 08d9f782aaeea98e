from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, VIDEO, Row
from torch import Tensor, nn

from .llava_next import SIZES


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**sizes, image_size=8, patch_size=4),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[8, 24], [8, 16]],
        vision_aspect_ratio="anyres_max_1",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    if names[0] == "video":
        return {"pixel_values_videos": torch.randn(len(names), 8, 3, 8, 8, generator=generator)}
    pixels = torch.randn(len(names), 4, 3, 8, 8, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([SIZES[name] for name in names])}


def make_row() -> Row:
    """2 x 2 tokens of the whole, then the crops: 2 x 6 made 1 x 3 of one, 2 x 2 of the other, each line with its end. A
    frame of the video is one token, and all of it a line."""
    lasting = {"a": (7,), "b": (6, 9), "video": (8,)}
    return Row(
        "llava_onevision", build, {"a": (8,), "b": (10,), "video": (9,)}, encode, {}, within=True, lasting=lasting
    )
