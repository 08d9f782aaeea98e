"""`Adapter`: what a backbone family tells the library. It knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

from torch import nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.reducers.entries import SCANS, VIDEO

from .weights import wrapped_costs

# What code reads of the last layer's output:
# "protected": protected tokens only, or nothing; image tokens stay reduced, and outputs of tokens hold those.
# "tokens": image tokens, however many there are, as pooling does; they come back unless the user says otherwise.
# "all": a place for each of the input's tokens, as for a map; they always come back.
Reads = Literal["protected", "tokens", "all"]
READS = {"protected": "protected tokens only", "tokens": "image tokens", "all": "a place for each token"}


class Adapter:
    """One backbone family. An adapter has no state; a file in `patches/` names its instance `ADAPTER`.

    Classes are swapped of modules inside the model only, for classes at module level: a model of any class, its user's
    subclass too, stays what it is and can be pickled.
    """

    name: str
    family: str
    place: str = "encoder"  # or "language": tokens leave before a language model, see patches/vision_language
    videos: bool = False  # tokens are tubelets, in a grid of time, height and width
    scans: bool = False  # layers are state-space models, which scan the tokens in order

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a backbone of this family, patched or not."""
        raise NotImplementedError

    def refusals(self, model: nn.Module) -> list[str]:
        """Why this model of the family cannot be patched at all; empty if it can."""
        raise NotImplementedError

    def lacks(self, model: nn.Module) -> dict[str, str]:
        """The entries that this model cannot show a reducer, each with the reason as a clause."""
        raise NotImplementedError

    def scan_refusals(self, model: nn.Module) -> dict[str, str]:
        """The values of `scan_conv` and `scan_gap` that this model cannot follow, each with the reason as a clause."""
        return {}

    def missing(self, model: nn.Module) -> dict[str, str]:
        """`lacks`, and what only models of videos and state-space models show, for others."""
        of_videos = {} if self.videos else dict.fromkeys(VIDEO, "the model takes images, not videos")
        of_scans = {} if self.scans else dict.fromkeys(SCANS, "the model is no state-space model")
        return self.lacks(model) | of_videos | of_scans

    def geometry(self, model: nn.Module) -> Geometry:
        """Layers, protected tokens, grid, widths and costs."""
        raise NotImplementedError

    def costs_now(self, model: nn.Module) -> Costs:
        """The costs of the model as it is now, with what wrappers of its layers add."""
        return wrapped_costs(self.geometry(model).costs, model)

    def reads(self, model: nn.Module, outer: Sequence[nn.Module]) -> Reads:
        """What follows the layers reads, in the model and in `outer`, the modules that hold it, outermost first."""
        raise NotImplementedError

    def language_model(self, outer: Sequence[nn.Module]) -> nn.Module | None:
        """The module of `outer` that hands the tokens on to a language model, a place for each; None if none does."""
        return None

    def prop_attn(self, model: nn.Module) -> bool:
        """Whether the log-size bias helps these weights."""
        return True

    def install(self, model: nn.Module, reduction: Reduction) -> None:
        """Swap the layers' classes and add hooks."""
        raise NotImplementedError

    def remove(self, model: nn.Module) -> None:
        """Undo `install`."""
        raise NotImplementedError

    def stuck(self, model: nn.Module) -> list[str]:
        """Who keeps `remove` from undoing everything; empty if nobody does."""
        return []

    def depth_now(self, model: nn.Module, reduction: Reduction) -> int:
        """How many of the layers that were patched the model has now, the first ones.

        Raises: ValueError if the patch does not fit the model any more.
        """
        return reduction.geometry.depth

    def stands(self, model: nn.Module, layer: int) -> bool:
        """Whether the parts of a layer are still those that were patched."""
        return True

    def sliced(self, model: nn.Module, counts: tuple[int, ...], placement: str) -> AbstractContextManager[nn.Module]:
        """The unpatched model with its image tokens cut to `counts` by slicing: the limit that no method can beat."""
        raise NotImplementedError
