from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row
from torch import Tensor, nn

SIZES = {"a": (32, 32), "b": (16, 48)}  # patches of 4 x 4, merged 2 x 2


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**sizes, image_size=48, patch_size=4),
        text_config=hf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        image_token_index=IMAGE,
    )
    return hf.Mistral3ForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    pixels = torch.randn(len(names), 3, 48, 48, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([SIZES[name] for name in names])}


def make_row() -> Row:
    return Row("mistral3", build, {"a": (16,), "b": (12,)}, encode, {"a": (4, 4), "b": (2, 6)}, within=True)
