"""`Taps`: outputs of layers that other code collects. It gets all tokens in raster order, and the reduced ones wait
here for the next layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenreduce.maps.token_map import TokenMap


class Watched(NamedTuple):
    """A tensor that other code gets, and how often it had been written to by then."""

    tensor: Tensor | None = None
    version: int | None = None

    def is_changed(self) -> bool:
        """Whether somebody has edited the tensor in place, or a view of it."""
        return self.version is not None and self.tensor is not None and self.tensor._version != self.version


def watched(x: Tensor) -> Watched:
    # The compiler cannot compare versions: there, edits in place of what is collected are not seen (docs/dense.md).
    return Watched(x, None if torch.compiler.is_compiling() or x.is_inference() else x._version)


class Taps:
    """Which layers are tapped, and what waits between two of them.

    A layer that returns all tokens hands them out (`hand_out`); the next one takes back the reduced tokens that waited
    (`take_back`), with any change that a hook made to what was handed out. A layer that returns tokens in another shape
    than it works on says so (`returns`), and the next one asks what it received (`tokens_of`).
    """

    def __init__(self, layers: frozenset[int] = frozenset()) -> None:
        self.layers = layers
        self.waiting: Tensor | None = None  # reduced tokens that go on in the next layer
        self._reduced: Tensor | None = None  # those of which everything was made
        self._handed_out, self._returned = Watched(), Watched()

    def hand_out(self, everything: Tensor, reduced: Tensor) -> Tensor:
        """Return `everything` (all tokens) to whoever collects, while the `reduced` ones wait."""
        if not torch.compiler.is_compiling() and everything.is_inference():
            with torch.inference_mode(False), torch.no_grad():  # a normal tensor, which counts how often it is edited
                everything = everything.clone()
        self.waiting, self._reduced, self._handed_out = reduced, reduced, watched(everything)
        return everything

    def returns(self, x: Tensor) -> Tensor:
        """Remember `x`, which is what the layer returns: the tokens that it has, in another shape."""
        self._returned = watched(x)
        return x

    def tokens_of(self, x: Tensor) -> Tensor | None:
        """The tokens that were handed out, if `x` is what the last layer returned of them, unchanged."""
        unchanged = self.waiting is not None and x is self._returned.tensor and not self._returned.is_changed()
        return self._handed_out.tensor if unchanged else None

    def add(self, change: Tensor) -> None:
        """Add something to the tokens that wait."""
        assert self.waiting is not None
        self.waiting = self.waiting + change

    def stop_waiting(self) -> Tensor | None:
        """The tokens that wait, or None; afterwards none do."""
        waiting, self.waiting = self.waiting, None
        return waiting

    def take_back(
        self,
        waiting: Tensor,
        x: Tensor,
        maps: Sequence[TokenMap],
        prefix: int,
        suffix: int,
        restore: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The tokens that waited, changed as a hook changed what was handed out into `x`: each token gets the mean
        change of the places that it stands for. `restore` makes again what was handed out, where it was edited in
        place."""
        edited = self._handed_out.is_changed()
        if x is self._handed_out.tensor and not edited:
            return waiting
        before = self._handed_out.tensor
        if edited and restore is not None and self._reduced is not None:
            before = restore(self._reduced)
        assert before is not None
        change, places = x - before, None
        for token_map in maps:
            pooled = TokenMap(token_map.count, dest=token_map.dest_or_argmax())
            change, places = pooled.apply(change, places, prefix, suffix), pooled.sizes(places)
        return waiting + change
