"""`Adapter`: what a backbone family tells the library. It knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from tokenreduce.budget.geometry import Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.reducers.entries import VIDEO


class Adapter:
    """One backbone family. An adapter has no state; a file in `patches/` names its instance `ADAPTER`.

    Only classes of layers are swapped, for classes at module level: a model of any class, its user's subclass too,
    stays what it is and can be pickled.
    """

    name: str
    family: str
    videos: bool = False  # tokens are tubelets, in a grid of time, height and width
    # True if the part after the layers needs the full grid; tokens are then always restored.
    needs_maps: bool = False

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a backbone of this family, patched or not."""
        raise NotImplementedError

    def refusals(self, model: nn.Module) -> list[str]:
        """Why this model of the family cannot be patched at all; empty if it can."""
        raise NotImplementedError

    def lacks(self, model: nn.Module) -> dict[str, str]:
        """The entries that this model cannot show a reducer, each with the reason as a clause."""
        raise NotImplementedError

    def missing(self, model: nn.Module) -> dict[str, str]:
        """`lacks`, and for models of images also what only models of videos show."""
        of_videos = {} if self.videos else dict.fromkeys(VIDEO, "the model takes images, not videos")
        return self.lacks(model) | of_videos

    def geometry(self, model: nn.Module) -> Geometry:
        """Layers, protected tokens, grid, widths and costs."""
        raise NotImplementedError

    def restores(self, model: nn.Module, outer: Sequence[nn.Module]) -> bool:
        """Whether what follows the layers needs all tokens: a head that pools image tokens or reads a map, in the model
        or in the modules that hold it, `outer`, outermost first."""
        raise NotImplementedError

    def needs_all(self, model: nn.Module, outer: Sequence[nn.Module]) -> bool:
        """Whether what follows the layers, in the model or in `outer`, cannot run without all tokens."""
        return self.needs_maps

    def prop_attn(self, model: nn.Module) -> bool:
        """Whether the log-size bias helps these weights."""
        return True

    def install(self, model: nn.Module, reduction: Reduction) -> None:
        """Swap the layers' classes and add hooks."""
        raise NotImplementedError

    def remove(self, model: nn.Module) -> None:
        """Undo `install`."""
        raise NotImplementedError

    def sliced(self, model: nn.Module, counts: tuple[int, ...], placement: str) -> AbstractContextManager[nn.Module]:
        """The unpatched model with its image tokens cut to `counts` by slicing: the limit that no method can beat."""
        raise NotImplementedError
