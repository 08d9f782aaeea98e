"""Which of a model's tokens are those of the image, and which is the class token."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.budget.geometry import Geometry


def image_tokens(tokens: Tensor, geometry: Geometry) -> Tensor:
    """`(B, N, C)` of all tokens `(B, prefix + N + suffix, C)`: YOLOS has its detection tokens after them, Vim its
    class token in their middle."""
    if geometry.ordered == "middle":
        place = class_place(tokens, geometry)
        return torch.cat([tokens[:, :place], tokens[:, place + 1 :]], 1)
    return tokens[:, geometry.prefix : tokens.shape[1] - geometry.suffix]


def class_place(tokens: Tensor, geometry: Geometry) -> int:
    """Where the class token stands among all tokens `(B, prefix + N + suffix, C)`."""
    return (tokens.shape[1] - 1) // 2 if geometry.ordered == "middle" else 0
