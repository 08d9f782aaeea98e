"""What a layer can show a reducer beyond features and sizes: one record an entry, and how entries are made.

A new entry is one record here, and one source: a hook or a restated attention (`forward.shown`), or a line in
`forward.layer_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.ops.attention import attention_map, received_and_own, without_padding
from tokenreduce.ops.class_attention import ClassAttention


@dataclass(frozen=True)
class Entry:
    """One entry of `Tokens`.

    Args:
        shape: its axes: B images, N image tokens, A all tokens (protected ones included), H heads, d channels of a
            head, and what else `says` explains. Empty for entries that are no tensors.
        says: what it is.
        videos: only models of videos have it.
        scans: only state-space models have it.
        of_attention: it is computed from queries and keys.
    """

    shape: tuple[str, ...]
    says: str
    videos: bool = False
    scans: bool = False
    of_attention: bool = False

    @property
    def axes(self) -> str:
        """The shape as people write it, `(B, H, N, d)`."""
        return f"({', '.join(self.shape)})"

    def fits(self, tensor: Tensor, sizes: dict[str, int]) -> bool:
        """Whether `tensor` has this entry's axes; `sizes` holds the lengths that are known, by axis."""
        return tensor.ndim == len(self.shape) and all(
            axis not in sizes or length == sizes[axis] for axis, length in zip(self.shape, tensor.shape, strict=True)
        )


HEADS = ("B", "H", "N", "d")
ENTRIES = {
    "mean_keys": Entry(
        ("B", "N", "d"),
        "in fp32, mean over heads of the keys after k-norm and before rotary embedding; costs less than the keys; "
        "features where the model has no keys (state-space models)",
    ),
    "keys": Entry(HEADS, "the keys after k-norm and before rotary embedding"),
    "queries": Entry(HEADS, "the queries after q-norm and before rotary embedding"),
    "values": Entry(HEADS, "the values"),
    "class_attention": Entry(
        ("B", "N"),
        "in fp32, attention of the class token to the image tokens, mean over heads and class tokens; rows of the full "
        "softmax, so they sum to less than 1",
        of_attention=True,
    ),
    "text_attention": Entry(
        ("B", "N"),
        "in fp32, within a language model: attention of the prompt's last token to the image tokens in the layer "
        "before, mean over heads; rows of the full softmax",
    ),
    "received_attention": Entry(
        ("B", "H", "N"),
        "in fp32, attention that each image token receives: column sums of the full softmax over all queries, itself "
        "and protected tokens included",
        of_attention=True,
    ),
    "own_attention": Entry(
        ("B", "H", "N"),
        "in fp32, attention of each image token to itself: the diagonal of the full softmax",
        of_attention=True,
    ),
    "attention": Entry(
        ("B", "H", "A", "A"),
        "in fp32, the full attention of all tokens, protected ones included; needs memory of its size",
        of_attention=True,
    ),
    "grid": Entry((), "the image tokens' grid (H, W), as `Tokens.grid`"),
    "frames": Entry((), "the image tokens' grid in time, height and width (T, H, W), as `Tokens.grid`", videos=True),
    "pixels": Entry(
        ("B", "N", "F", "P"),
        "the input's pixels in each token before any reduction, P in each of the F frames that it covers, channels "
        "included",
        videos=True,
    ),
    "positions": Entry(("B", "N", "2"), "in fp32, mean row and column in the input's grid of the tokens in each token"),
    "auxiliary_logits": Entry(
        ("B", "N", "P", "K"),
        "logits of K classes by the model's own auxiliary head after this layer, of P places in each token",
    ),
    "scan_output": Entry(
        ("B", "N", "E"),
        "what the scans of a layer give, gated, before the output projection, E inner channels",
        scans=True,
    ),
    "time_step": Entry(("B", "N", "E"), "the time steps of a layer's scans, mean over directions", scans=True),
    "crops": Entry(
        ("B", "N", "3"),
        "of images that are shown whole, small, and in crops: the crop of each token, from 1 on, row by row, 0 for the "
        "small image, -1 for what ends a row; its row and column, in the small image or in the grid of all crops",
    ),
    "origin": Entry(("B", "N"), "the index in the input of the token that represents each token"),
}
VIDEO = frozenset(name for name, entry in ENTRIES.items() if entry.videos)
SCANS = frozenset(name for name, entry in ENTRIES.items() if entry.scans)
ATTENTION = frozenset(name for name, entry in ENTRIES.items() if entry.of_attention)


def image_sources(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    class_tokens: int,
    image: slice,
    padding: Tensor | None = None,
) -> dict[str, Callable[[], Tensor]]:
    """The entries of `Tokens` that attention yields, as functions; `image` says where the image tokens stand, `padding
    (B, N)` which tokens do not count as queries."""
    found: list[tuple[Tensor, Tensor]] = []

    def statistics() -> tuple[Tensor, Tensor]:
        if not found:
            found.append(received_and_own(queries, keys, bias, padding))
        return found[0]

    sources: dict[str, Callable[[], Tensor]] = {
        "attention": lambda: without_padding(attention_map(queries, keys, bias), padding),
        "received_attention": lambda: statistics()[0][..., image],
        "own_attention": lambda: statistics()[1][..., image],
    }
    if class_tokens:
        sources["class_attention"] = ClassAttention(queries, keys, bias, class_tokens, image)
    return sources


def from_attention(attention: Tensor, prefix: int) -> dict[str, Tensor]:
    """The entries that follow from the full attention `(B, H, A, A)` of `prefix` protected and N image tokens."""
    attention = attention.float()
    found = {
        "attention": attention,
        "received_attention": attention.sum(2)[..., prefix:],
        "own_attention": attention.diagonal(dim1=2, dim2=3)[..., prefix:],
    }
    return found | ({"class_attention": attention[:, :, 0, prefix:].mean(1)} if prefix else {})


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


def fake_entries(
    full: Tensor, class_tokens: int, image: slice, grid: tuple[int, ...], generator: torch.Generator | None
) -> dict[str, Callable[[], Tensor]]:
    """Stand-ins for the entries that a model shows, for counting what a method does with them.

    Args:
        full: `(1, H, A, d)`, random keys, queries and values of all tokens, on the CPU or without data (meta).
        image: where the image tokens stand among them.
        grid: that of the input.
    """
    n = image.stop - image.start
    sources: dict[str, Callable[[], Tensor]] = {
        "mean_keys": lambda: full[:, 0, image],
        "positions": lambda: torch.rand(1, n, 2, generator=generator, device=full.device) * max(grid),
        "origin": lambda: torch.arange(n, device=full.device)[None],
        "scan_output": lambda: torch.randn(1, n, 2 * full.shape[-1], generator=generator, device=full.device),
        "time_step": lambda: torch.rand(1, n, 2 * full.shape[-1], generator=generator, device=full.device),
        "text_attention": lambda: torch.rand(1, n, generator=generator, device=full.device),
        "pixels": lambda: torch.randn(1, n, 2, 1, generator=generator, device=full.device),
        "crops": lambda: torch.zeros(1, n, 3, dtype=torch.long, device=full.device),
    }
    sources |= {name: lambda: full[:, :, image] for name in ("keys", "queries", "values")}
    return sources | image_sources(full, full, None, class_tokens, image)
