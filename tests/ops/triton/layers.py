"""What a layer of a model shows to a method that reads the class token's attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_calls import strided

from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.entries import image_sources
from tokenreduce.reducers.tokens import Tokens


@dataclass
class Layer:
    """What a layer of a model shows: `n` image tokens between protected ones."""

    n: int = 60
    prefix: int = 1
    suffix: int = 0
    heads: int = 3
    head: int = 16
    channels: int = 48
    dtype: torch.dtype = torch.float32
    class_tokens: int = 1
    sized: bool = True
    how: str = "contiguous"
    number: int = 11

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.n + self.prefix)
        all_tokens = self.prefix + self.n + self.suffix
        features = torch.randn(2, all_tokens, self.channels, generator=g).to(self.dtype)
        self.features = strided(features, self.how)[:, self.prefix : all_tokens - self.suffix]
        # Attention that differs much, as trained models have it.
        qkv = torch.randn(2, all_tokens, 3, self.heads, self.head, generator=g) * 2
        self.queries, self.keys = qkv.to(self.dtype).permute(2, 0, 3, 1, 4)[:2]
        self.sizes = torch.randint(1, 9, (2, self.n), generator=g).float() if self.sized else None
        logs = None if self.sizes is None else self.sizes.log()[:, None, None]
        self.bias = None if logs is None else torch.nn.functional.pad(logs, (self.prefix, self.suffix))

    def tokens(self, **more: Any) -> Tokens:
        image = slice(self.prefix, self.prefix + self.n)
        shown = image_sources(self.queries, self.keys, self.bias, self.class_tokens, image)
        shown |= {"mean_keys": lambda: self.keys[:, :, image]}
        given = {"prefix": self.prefix, "suffix": self.suffix, "layer": self.number, "depth": 12} | more
        return Tokens(self.features, self.sizes, shown, **given)


@contextmanager
def kernels_asked_for() -> Iterator[list[str]]:
    """Names of kernels that `evit` and `ward` themselves ask for."""
    asked: list[str] = []

    def choose(name: str, x: torch.Tensor) -> Any:
        asked.append(name)
        return dispatch.choose(name, x)

    with pytest.MonkeyPatch.context() as patch:
        for method in ("evit", "ward"):
            patch.setattr(f"tokenreduce.reducers.methods.{method}.choose", choose)
        yield asked
