"""`Tokens`: what one layer shows to a reducer. Everything but the features is computed only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tokenreduce.errors import InvalidValueError

# What a reducer may need and an adapter may provide, beyond features and sizes.
PROVIDABLE = {
    "mean_keys": "mean over heads of the keys (B, N, d), which costs less than keeping the keys",
    "keys": "keys (B, H, N, d) after k-norm and before rotary embedding",
    "queries": "queries (B, H, N, d)",
    "values": "values (B, H, N, d)",
    "class_attention": "attention of the class token to the image tokens (B, N), mean over heads",
    "received_attention": "attention that each image token receives from all tokens (B, H, N)",
    "own_attention": "attention of each image token to itself (B, H, N)",
    "attention": "the full attention (B, H, N, N) of all tokens, protected ones included",
    "grid": "the image tokens' grid (H, W)",
    "frames": "the image tokens' grid in time, height and width (T, H, W)",
    "pixels": "the input's pixels in each token (B, N, F, P), P in each of the F frames that it covers",
    "positions": "the mean place (row, column) of the input tokens in each token (B, N, 2)",
    "auxiliary_logits": "class logits (B, N, P, K) by the model's auxiliary head of this layer, of P places a token",
    "origin": "the input token that represents each token (B, N)",
}
VIDEO = frozenset({"frames", "pixels"})  # what only models of videos have
ATTENTION = frozenset({"class_attention", "received_attention", "own_attention", "attention"})


@dataclass
class Tokens:
    """The image tokens of one layer; protected tokens are left out of every entry except `attention`.

    Args:
        features: `(B, N, C)`, the residual stream where the reducer is placed.
        sizes: `(B, N)` in fp32, or None while every token stands for itself.
        sources: functions that compute the lazy entries named in `PROVIDABLE`.
        grid: `(H, W)` of the input's image tokens, of a video `(T, H, W)`, if they are one.
        prefix, suffix: how many protected tokens stand in front and behind.
        layer, depth: the 0-based layer and the number of layers.
        padding: `(B, N)`, True for tokens that only pad, or None. They are shown as one point far from all others, get
            no attention, and are of size 1 here, though they weigh nothing when a map is applied.
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

    @property
    def count(self) -> int:
        """N, the number of image tokens."""
        return self.features.shape[1]

    @property
    def keys(self) -> Tensor:
        """`(B, H, N, d)`."""
        return self._compute("keys")

    @property
    def queries(self) -> Tensor:
        """`(B, H, N, d)`."""
        return self._compute("queries")

    @property
    def values(self) -> Tensor:
        """`(B, H, N, d)`."""
        return self._compute("values")

    @property
    def class_attention(self) -> Tensor:
        """`(B, N)`, fp32, mean over heads and class tokens; rows of the full softmax, so they sum to less than 1."""
        return self._compute("class_attention")

    @property
    def mean_keys(self) -> Tensor:
        """`(B, N, d)` in fp32: the mean over heads of the keys after k-norm and before rotary embedding."""
        keys = self.keys_to_average
        return keys.float().mean(1) if keys.ndim == 4 else keys

    @property
    def keys_to_average(self) -> Tensor:
        """`mean_keys`, or the keys `(B, H, N, d)` of which a kernel makes them."""
        return self._compute("mean_keys")

    @property
    def auxiliary_logits(self) -> Tensor:
        """`(B, N, P, K)`: logits of K classes by the model's own auxiliary head behind this layer, of P places in each
        token."""
        return self._compute("auxiliary_logits")

    @property
    def received_attention(self) -> Tensor:
        """`(B, H, N)`, fp32: column sums of the full softmax over all queries, protected tokens and itself included."""
        return self._compute("received_attention")

    @property
    def own_attention(self) -> Tensor:
        """`(B, H, N)`, fp32: the diagonal of the full softmax."""
        return self._compute("own_attention")

    @property
    def attention(self) -> Tensor:
        """`(B, H, N, N)`, fp32: the full softmax over `prefix + N + suffix` tokens; needs memory of its size."""
        return self._compute("attention")

    @property
    def positions(self) -> Tensor:
        """`(B, N, 2)`, fp32: mean row and column in the input's grid of the input tokens in each token."""
        return self._compute("positions")

    @property
    def origin(self) -> Tensor:
        """`(B, N)`: the index in the input of the token that represents each token."""
        return self._compute("origin")

    @property
    def pixels(self) -> Tensor:
        """`(B, N, F, P)`: the input's pixels in each token, before any reduction; frame by frame, channels included."""
        return self._compute("pixels")

    def provides(self, name: str) -> bool:
        """Whether the entry `name` of `PROVIDABLE` is here."""
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


def far_away(heads: Tensor, padding: Tensor) -> Tensor:
    """`heads (B, ..., N, d)` with one point in the place of all `padding (B, N)`: opposite to the mean of the others,
    and at least as long as any.

    So padding joins padding first, and no two real tokens meet in it.
    """
    where = padding.view(padding.shape[0], *(1,) * (heads.ndim - 3), padding.shape[1], 1)
    real = heads.masked_fill(where, 0)
    point = -real.sum(-2, keepdim=True).sign() * real.abs().amax((-2, -1), keepdim=True)
    return point.to(heads.dtype).where(where, heads)


def tubelets(video: Tensor, sides: tuple[int, ...]) -> Tensor:
    """`(B, N, F, P)`: the pixels of `video (B, C, frames, height, width)` in tubelets of `sides` (F, h, w), which stand
    in the order of their tokens; what fills no tubelet is left out."""
    cells = [length // side for length, side in zip(video.shape[2:], sides, strict=True)]
    inside = video[:, :, : cells[0] * sides[0], : cells[1] * sides[1], : cells[2] * sides[2]]
    split = inside.reshape(*video.shape[:2], cells[0], sides[0], cells[1], sides[1], cells[2], sides[2])
    return split.permute(0, 2, 4, 6, 3, 1, 5, 7).flatten(5).flatten(1, 3)
