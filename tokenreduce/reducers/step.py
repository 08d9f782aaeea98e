"""`Step`: one reduction in numbers, of which a method says what it costs before there are tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One image's reduction from `n` image tokens to `keep`.

    Args:
        layer, depth: the 0-based layer and the number of layers.
        width, heads, head_dim: channels of a token, attention heads, channels of a head.
        prefix, suffix: protected tokens before and after the image tokens.
        class_tokens: how many of them are class tokens.
        grid: that of the input's tokens.
        ordered: the model scans its tokens in order.
        undone: the map is undone by a product if it is dense: tokens come back, in the mode "soft" or "delta".
    """

    n: int
    keep: int
    layer: int
    depth: int
    width: int
    heads: int
    head_dim: int
    prefix: int
    suffix: int
    class_tokens: int
    grid: tuple[int, ...]
    undone: bool
    ordered: bool = False

    @property
    def attention(self) -> int:
        """MACs of `attention`, or of `received_attention` and `own_attention` together."""
        return self.heads * (self.prefix + self.n + self.suffix) ** 2 * self.head_dim

    @property
    def class_attention(self) -> int:
        """MACs of `class_attention`."""
        return self.heads * self.class_tokens * (self.prefix + self.n + self.suffix) * self.head_dim

    @property
    def dense_map(self) -> int:
        """MACs of applying a dense map, and of undoing it where that is a product; an integer map costs none."""
        return self.n * self.keep * self.width * (2 if self.undone else 1)

    def bipartite(self, width: int, n: int | None = None) -> int:
        """MACs of comparing, by `width` channels, every second of `n` tokens (None: all) with the others."""
        n = self.n if n is None else n
        return n // 2 * (n - n // 2) * width

    def nearest_kept(self, width: int) -> int:
        """MACs of comparing all tokens with those kept, by `width` channels."""
        return self.n * self.keep * width
