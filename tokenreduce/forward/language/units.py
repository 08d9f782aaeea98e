"""Units: the images and videos of a batch of prompts, and where their tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError

Grid = tuple[int, ...]


class Facts(NamedTuple):
    """What is known of an image or video of T tokens besides its features.

    Args:
        grid: of its tokens.
        class_attention: `(T,)`, that of the vision tower's class token to them.
        received_attention: `(T,)`, what they receive from all tokens of the tower, mean over heads.
        crops: `(T, 3)`, of an image that is shown whole and in crops: the entry of this name.
    """

    grid: Grid | None = None
    class_attention: Tensor | None = None
    received_attention: Tensor | None = None
    crops: Tensor | None = None

    def shown(self) -> dict[str, Tensor]:
        """What is known of each token, as entries of `Tokens` without a batch."""
        known = {"class_attention": self.class_attention, "crops": self.crops}
        known["received_attention"] = None if self.received_attention is None else self.received_attention[None]
        return {name: x for name, x in known.items() if x is not None}

    def on(self, device: torch.device) -> Facts:
        """The same there."""
        return Facts(self.grid, *(None if x is None else x.to(device) for x in self[1:]))

    def of(self, members: Tensor) -> Facts:
        """The same of the tokens `members` alone."""
        return Facts(self.grid, *(None if x is None else x[members] for x in self[1:]))


class Unit(NamedTuple):
    """One image or video: the prompt that it is in, the places of its tokens there `(T,)`, what is known of it, and of
    how many tokens each is made `(T,)`, where some have left; None: of one."""

    prompt: int
    places: Tensor
    facts: Facts
    sizes: Tensor | None = None

    def on(self, device: torch.device) -> Unit:
        """The same there: parts of a model may be on several devices."""
        sizes = None if self.sizes is None else self.sizes.to(device)
        return Unit(self.prompt, self.places.to(device), self.facts.on(device), sizes)


def find_units(placeholders: Tensor, lengths: Sequence[int], facts: Sequence[Facts]) -> list[Unit]:
    """The units whose features fill the `placeholders (B, n)` one after the other, each as many as `lengths` says.

    `facts` are those of the units as they were encoded; beams repeat the units of a prompt: [A, B] -> [A, B, A, B].
    Where the numbers do not fit there are no units, and the model itself says what is wrong.
    """
    if sum(lengths) != int(placeholders.sum()):
        return []
    length = placeholders.shape[1]
    flat = placeholders.flatten().nonzero()[:, 0]
    ends = [end - 1 for end in accumulate(lengths)]
    starts = [end + 1 - count for end, count in zip(ends, lengths, strict=True)]
    first, last = (flat[index].div(length, rounding_mode="floor").tolist() for index in (starts, ends))
    if first != last:
        raise InvalidValueError(
            "the features of one image belong to the places of two prompts: an image's tokens must stand in one prompt"
        )
    spread = _as_encoded(first, len(facts), placeholders.shape[0])
    parts = (places % length for places in flat.split(list(lengths)))
    return [
        Unit(prompt, places, facts[i] if i < len(facts) else Facts())
        for prompt, places, i in zip(first, parts, spread, strict=True)
    ]


def _as_encoded(prompts: Sequence[int], encoded: int, batch: int) -> list[int]:
    """The number of each unit among the `encoded` ones, of which every prompt's were repeated as often as beams are."""
    if encoded == 0 or len(prompts) % encoded:
        return [encoded] * len(prompts)
    repeats = len(prompts) // encoded
    found: list[int] = []
    start = 0
    for prompt in range(batch):
        own = prompts.count(prompt)
        found += range(start, start + own)
        start += own if prompt % repeats == repeats - 1 else 0
    return found
