"""What the rows of SmolVLM and Idefics 3 share: every unit is a crop, and all crops of a prompt stand in one entry."""

from collections.abc import Sequence
from typing import Any

import torch
from prompting import IMAGE, PAD, TEXT, Row
from torch import Tensor

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"image_size": 32, "patch_size": 4}


def config_of(kind: Any, text: Any) -> Any:
    return kind(vision_config=VISION, text_config=text(**TEXT), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, len(names), 3, 32, 32, generator=generator)}


def join(entries: Sequence[Tensor]) -> Tensor:
    """A batch, in which crops of zeros stand for those that a prompt has not."""
    most = max(entry.shape[1] for entry in entries)
    pads = [entry.new_zeros(1, most - entry.shape[1], *entry.shape[2:]) for entry in entries]
    return torch.cat([torch.cat([entry, pad], 1) for entry, pad in zip(entries, pads, strict=True)])


def idefics(name: str, build: Any) -> Row:
    grids = {"a": (4, 4), "b": (4, 4)}
    return Row(
        name, build, {"a": (16,), "b": (16,)}, encode, grids, join=join, axis=1, within=True, tower="vision_model"
    )
