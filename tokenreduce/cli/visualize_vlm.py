"""`tokenreduce visualize --keep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from tokenreduce.cli.arguments import keep_arms
from tokenreduce.cli.output import console, print_refused
from tokenreduce.cli.writing import saying
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import photographs, scene_questions, scenes
from tokenreduce.lab.data.asked import QUESTION
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.quality.kept_places import draw_kept, kept_tokens
from tokenreduce.lab.shipped.vision_language import SCENES, Prompted, load_prompted
from tokenreduce.patching.verbs import report

SEED = 2  # of the shipped model's scene: one of the demo


def visualize_vlm(
    image: Path | None,
    model: str,
    method: str,
    keep: str,
    option: Sequence[str],
    question: str | None,
    upright: bool,
    pretrained: bool,
    out: Path,
) -> None:
    """Draw which tokens of an image are left in the last layer of a language model."""
    arms = keep_arms(method, keep, option)
    picture, said = choose_picture(image, model, question, upright)
    prompted = load_prompted(model, pretrained)
    if prompted.processor is None:
        raise InvalidValueError(f"{model} has random weights and knows no words; give hf:NAME or {SCENES}")
    inputs = prompted.processor(images=picture, text=[said])
    lanes, refused = try_arms(arms, lambda arm: patched_lane(prompted.model, arm))
    print_refused(refused)
    kept: dict[str, Tensor] = {}
    grid: Any = None
    for arm, lane in lanes:
        numbers = kept_tokens(lane, inputs).cpu()
        shown = report(lane).to_json()
        grid = grid if "units" not in shown else report(lane).grids[0]
        count = shown.get("visual_tokens", len(numbers))
        kept[f"{arm.method}\n{arm.budget}"] = numbers
        console.print(f"{arm.name}: {len(numbers)} of {count} tokens of the image are left", highlight=False)
    if grid is None or len(grid) != 2:
        raise InvalidValueError(
            f"the tokens of this image are no known grid in {model}, or none has left; choose a smaller --keep, or "
            "another --model"
        )
    with saying("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_kept(as_seen(prompted, picture[0], inputs), kept, grid, out, said)
    console.print(f"wrote {out}", highlight=False)


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
