"""`Taps`: outputs of layers that other code collects. It gets all tokens in raster order, and the reduced ones wait
here for the next layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap


class Taps:
    """Which layers are tapped, and what waits between two of them.

    A layer that returns all tokens hands them out (`hand_out`); the next one takes back the reduced tokens that waited
    (`take_back`), with any change that a hook made to what was handed out. A layer that returns tokens in another shape
    than it works on says so (`returns`), and the next one asks what it received (`tokens_of`).
    """

    def __init__(self, layers: frozenset[int] = frozenset()) -> None:
        self.layers = layers
        self.waiting: Tensor | None = None  # reduced tokens that go on in the next layer
        self._handed_out: Tensor | None = None
        self._returned: Tensor | None = None

    def hand_out(self, everything: Tensor, reduced: Tensor) -> Tensor:
        """Return `everything` (all tokens) to whoever collects, while the `reduced` ones wait."""
        self.waiting, self._handed_out = reduced, everything
        return everything

    def returns(self, x: Tensor) -> Tensor:
        """Remember `x`, which is what the layer returns: the tokens that it has, in another shape."""
        self._returned = x
        return x

    def tokens_of(self, x: Tensor) -> Tensor | None:
        """The tokens that were handed out, if `x` is what the last layer returned of them, unchanged."""
        return self._handed_out if self.waiting is not None and x is self._returned else None

    def add(self, change: Tensor) -> None:
        """Add something to the tokens that wait."""
        assert self.waiting is not None
        self.waiting = self.waiting + change

    def stop_waiting(self) -> Tensor | None:
        """The tokens that wait, or None; afterwards none do."""
        waiting, self.waiting = self.waiting, None
        return waiting

    def take_back(self, waiting: Tensor, x: Tensor, maps: Sequence[TokenMap], prefix: int, suffix: int) -> Tensor:
        """The tokens that waited, changed as a hook changed what was handed out into `x`: each token gets the mean
        change of the places that it stands for."""
        if x is self._handed_out:
            return waiting
        assert self._handed_out is not None
        change, places = x - self._handed_out, None
        for token_map in maps:
            pooled = TokenMap(token_map.count, dest=token_map.dest_or_argmax())
            change, places = pooled.apply(change, places, prefix, suffix), pooled.sizes(places)
        return waiting + change
