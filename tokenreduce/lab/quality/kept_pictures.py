"""The picture on which kept tokens are drawn, and what is asked about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import photographs, scene_questions, scenes
from tokenreduce.lab.data.asked import QUESTION
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.shipped.vision_language import SCENES, Prompted

SEED = 2  # of the shipped model's scene: one of the demo


def choose_picture(image: Path | None, model: str, question: str | None, upright: bool) -> tuple[Any, str]:
    """One picture as the model's processor takes it, and what is asked about it."""
    if model == SCENES:
        if image is not None:
            raise InvalidValueError(f"{SCENES} answers questions about scenes alone; leave out --image {image}")
        held = scenes.load(1, seed=SEED)
        return held.images, question or scene_questions.ask_all(held, 1, SEED)[0][0].text
    path = photographs.sources()[0] if image is None else image
    return [decode(path, upright=upright).convert("RGB")], question or QUESTION


def as_seen(prompted: Prompted, picture: Tensor | Image.Image, inputs: dict[str, Tensor]) -> Tensor:
    """The picture `(1 or 3, H, W)` in the frame that its tokens cover: processors may have cut its sides off."""
    if isinstance(picture, Tensor):
        return picture
    pixels = inputs["pixel_values"]
    if pixels.ndim != 4:  # patches one after the other, of the whole picture
        whole: Tensor = to_tensor(picture)
        return whole
    made = prompted.processor.processor.processor.image_processor
    mean, std = (torch.tensor(value)[:, None, None] for value in (made.image_mean, made.image_std))
    return (pixels[0].cpu().float() * std + mean).clamp(0, 1)
