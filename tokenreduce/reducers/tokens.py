"""`Tokens`: what one layer shows to a reducer. Everything but the features is computed only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.ops.class_attention import ClassAttention
from tokenreduce.reducers.entries import ENTRIES


def _entry(name: str) -> Any:
    """A property of `Tokens` that computes an entry."""
    entry = ENTRIES[name]
    return property(lambda self: self._compute(name), doc=f"`{entry.axes}`: {entry.says}.")


@dataclass
class Tokens:
    """The image tokens of one layer; protected tokens are left out of every entry except `attention`.

    Args:
        features: `(B, N, C)`, the residual stream where the reducer is placed.
        sizes: `(B, N)` in fp32, or None while every token stands for itself.
        sources: functions that compute the lazy entries, see `reducers.entries`.
        grid: `(H, W)` of the input's image tokens, of a video `(T, H, W)`, if they are one.
        prefix, suffix: how many protected tokens stand before and after the image tokens.
        layer, depth: the 0-based layer and the number of layers.
        padding: `(B, N)`, True for padding tokens, or None. Reducers see all of them as one point far from the real
            tokens, with no attention and size 1; when the map is applied they weigh 0.
        ordered: the model scans its tokens in order, and reads in the place of a dropped one what stands for it.
    """

    features: Tensor
    sizes: Tensor | None = None
    sources: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    grid: tuple[int, ...] | None = None
    prefix: int = 0
    suffix: int = 0
    layer: int = 0
    depth: int = 1
    padding: Tensor | None = None
    ordered: bool = False

    keys = _entry("keys")
    queries = _entry("queries")
    values = _entry("values")
    class_attention = _entry("class_attention")
    text_attention = _entry("text_attention")
    received_attention = _entry("received_attention")
    own_attention = _entry("own_attention")
    attention = _entry("attention")
    positions = _entry("positions")
    crops = _entry("crops")
    origin = _entry("origin")
    pixels = _entry("pixels")
    scan_output = _entry("scan_output")
    time_step = _entry("time_step")
    auxiliary_logits = _entry("auxiliary_logits")

    @property
    def count(self) -> int:
        """N, the number of image tokens."""
        return int(self.features.shape[1])

    @property
    def mean_keys(self) -> Tensor:
        """`(B, N, d)` in fp32: the mean over heads of the keys after k-norm and before rotary embedding."""
        keys = self.keys_to_average
        return keys.float().mean(1) if keys.ndim == 4 else keys

    @property
    def keys_to_average(self) -> Tensor:
        """`mean_keys`, or the keys `(B, H, N, d)` of which a kernel makes them."""
        return self._compute("mean_keys")

    def class_attention_parts(self) -> tuple[Tensor, Tensor, Tensor | None, int, int] | None:
        """What a kernel makes `class_attention` of, see `ClassAttention.parts`; None where it is made otherwise."""
        source = self.sources.get("class_attention")
        return source.parts() if isinstance(source, ClassAttention) else None

    def has(self, name: str) -> bool:
        """Whether the entry `name` is here."""
        if name == "frames":
            return self.grid is not None and len(self.grid) == 3
        return self.grid is not None if name == "grid" else name in self.sources

    def _compute(self, name: str) -> Tensor:
        if name not in self.sources:
            raise InvalidValueError(
                f"{name} is not available here (available: {', '.join(self.sources) or 'features only'}); "
                "a reducer declares it in its needs; after changing a model's attention, patch again"
            )
        return self.sources[name]()
