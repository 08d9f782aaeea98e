"""What a model makes of images, as the errors of a search compare it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenreduce.budget.geometry import Geometry
from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.token_places import image_tokens

KINDS = ("class_error", "token_error")


def features(model: Any, images: Tensor, geometry: Geometry, tokens: int) -> list[Tensor]:
    """Features `(B, C)` before the head and, where the model shows them, the final image tokens `(B, N, C)`, all
    restored. A model that cannot be taken apart gives its output in place of both.

    Args:
        geometry: which tokens stand around those of the image.
        tokens: image tokens that enter.
    """
    if hasattr(model, "whole"):  # of transformers, as `--model hf:NAME` wraps it
        _, pooled, states = model.whole(images)
    elif hasattr(model, "forward_features") and hasattr(model, "forward_head"):  # of timm
        states = model.forward_features(images)
        pooled = model.forward_head(states, pre_logits=True)
    else:
        out = model(images)
        states = getattr(out, "last_hidden_state", None)
        if states is None:
            return [_answer(out).flatten(1)]
        pooled = getattr(out, "pooler_output", None)
        pooled = states[:, 0] if pooled is None else pooled
    if states.ndim != 3 or states.shape[1] != tokens + geometry.protected:
        return [pooled.flatten(1)]
    return [pooled, image_tokens(states, geometry)]


def _answer(out: Any) -> Tensor:
    found = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(found, Tensor):
        raise InvalidTypeError(
            f"the model returns a {type(out).__name__} with neither logits nor last_hidden_state; calibrate a part of "
            "it that takes images and returns a tensor, such as its backbone"
        )
    return found
