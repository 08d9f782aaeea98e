"""What the rows of the Qwen-VL families share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from prompting import IMAGE, TEXT, VIDEO, Row
from torch import Tensor, nn

PATCH, FRAMES = 4, 2
GRIDS = {"a": (1, 8, 8), "b": (1, 4, 12), "video": (2, 4, 8)}  # of patches, merged 2 x 2
PLAIN = {"a": (16,), "b": (12,), "video": (16,)}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    video = bool(names) and names[0].startswith("video")
    grids = torch.tensor([GRIDS[name] for name in names])
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * FRAMES * PATCH**2, generator=generator)
    names_of = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    return dict(zip(names_of, (pixels, grids), strict=True))


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def qwen(name: str, build: Callable[[], nn.Module], units: dict[str, tuple[int, ...]] = PLAIN, **more: Any) -> Row:
    grids = {unit: (height // 2, width // 2) for unit, (_, height, width) in GRIDS.items() if unit != "video"}
    return Row(name, build, units, encode, grids, types=types, rotates_in_3d=True, tower="visual", **more)


def config_of(kind: Any, vision: dict[str, Any], **text: Any) -> Any:
    """A configuration of the class `kind`."""
    return kind(
        vision_config=vision,
        text_config=TEXT | {"rope_parameters": MROPE} | text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
