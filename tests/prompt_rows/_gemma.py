"""What the rows of the Gemma families share: masks that are made outside of the language model, here by hand."""

from collections.abc import Sequence

from prompting import IMAGE, VIDEO
from torch import Tensor

WINDOW = 12


def runs(ids: Sequence[int]) -> list[int]:
    """The number of the image or frame that each place belongs to, -1 for words."""
    found: list[int] = []
    for i, word in enumerate(ids):
        seen = word in (IMAGE, VIDEO)
        begins = seen and (i == 0 or ids[i - 1] not in (IMAGE, VIDEO))
        found.append(max(found, default=-1) + 1 if begins else found[-1] if seen else -1)
    return found


def pairs(places: Tensor, blocks: Tensor, window: int | None = None, both_ways: bool = True) -> Tensor:
    """`(1, 1, n, n)`: whether the row at a place sees another: those before it, and those of its block; no further back
    than a window of places."""
    q, k = places[:, None], places[None]
    seen = k <= q
    if both_ways:
        seen = seen | ((blocks[:, None] == blocks[None]) & (blocks[:, None] >= 0))
    return (seen if window is None else seen & (k > q - window))[None, None]
