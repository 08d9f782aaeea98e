"""Models by name, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.pretrained import PREFIX, first_line, load_pretrained
from tokenreduce.lab.shipped import dinov2_small
from tokenreduce.lab.shipped.fashion_vim import fashion_vim
from tokenreduce.lab.shipped.fashion_vit import fashion_vit

Size = tuple[int, ...]
SHIPPED: dict[str, Callable[[bool], nn.Module]] = {"fashion_vit": fashion_vit, "fashion_vim": fashion_vim}


def load_model(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Size]:
    """The model called `name`, and the shape of its input without the batch."""
    if name in SHIPPED:
        return load_shipped(name, image_size, pretrained)
    if name == dinov2_small.NAME:
        size = image_size or dinov2_small.SIDE
        return dinov2_small.dinov2_small(pretrained, size), (3, size, size)
    if name.startswith(PREFIX):
        found = load_pretrained(name.removeprefix(PREFIX), pretrained, image_size)
        return found, found.input_shape
    try:
        import timm
    except ImportError:
        raise InvalidValueError(
            f"{name!r} is a name of timm, which is not installed: pip install 'tokenreduce[timm]'; models of "
            "transformers are written hf:NAME"
        ) from None

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
        raise InvalidValueError(
            f"unknown model {name!r}; valid: {', '.join(SHIPPED)}, dinov2_small, a name of timm, or hf:NAME of "
            f"transformers; {hint}"
        )
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **sized).eval()
        channels, *own = model.pretrained_cfg["input_size"]
        shape = (channels, *([image_size] * 2 if image_size else own))
        if image_size is not None:
            with torch.inference_mode():
                model(torch.zeros(1, *shape))  # some sizes fail only here
            model.command_line = name, (channels, *own)  # for `advise`: what the name alone builds
            model.pretrained_cfg = {**model.pretrained_cfg, "input_size": shape}  # what pictures are scaled to
    except (TypeError, RuntimeError, OSError, AssertionError) as error:
        given = f" with --image-size {image_size}" if image_size else ""
        raise InvalidValueError(f"timm cannot run {name}{given}: {first_line(error)}") from None
    return model, shape


def load_shipped(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Size]:
    """A model that ships with the library."""
    if image_size not in (None, 28):
        raise InvalidValueError(f"--image-size is {image_size}; {name} takes 28")
    return SHIPPED[name](pretrained), (1, 28, 28)
