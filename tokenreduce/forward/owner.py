"""`Owner`: the model that a patch was made for. It says whether the patch still stands."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from tokenreduce.forward.parts import Parts


class Weakly:
    """A module that is held weakly, or None. Copies and pickles of a model hold its copy."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self._held = None if module is None else weakref.ref(module)

    def __call__(self) -> Any:
        """The module; None where there is none any more."""
        return None if self._held is None else self._held()

    def __deepcopy__(self, memo: dict[int, Any]) -> Weakly:
        # A copy is made from the outside in: where the module is copied, its copy is there already.
        return Weakly(memo.get(id(self())))

    def __reduce__(self) -> tuple[type[Weakly], tuple[nn.Module | None]]:
        return Weakly, (self(),)


class Touched:
    """The modules that a patch has changed, held weakly: also those that have left the model since. Copies and pickles
    hold none, as what they are made of is in the model."""

    def __init__(self) -> None:
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def add(self, modules: Iterable[nn.Module]) -> None:
        self._modules.update(modules)

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._modules

    def __iter__(self) -> Any:
        return iter([*self._modules])

    def __deepcopy__(self, memo: dict[int, Any]) -> Touched:
        return Touched()

    def __reduce__(self) -> tuple[type[Touched], tuple[()]]:
        return Touched, ()


class Owner:
    """The backbone of a patch and the adapter that installs it, with what the patch relies on.

    Args:
        backbone: the module that the adapter knows.
        adapter: that of its family. Its `depth_now` says how many layers stand, or raises.
        reads: what follows the layers reads of their output.
        heads: the module around the backbone whose auxiliary predictions the method reads, if it does.
    """

    parts = Parts()  # of models that were pickled before there were any

    def __init__(self, backbone: nn.Module, adapter: Any, reads: str, heads: Any = None) -> None:
        self._backbone, self._heads = Weakly(backbone), Weakly(heads)
        self.adapter, self.reads = adapter, reads
        self.touched, self.wrappers, self.parts = Touched(), Touched(), Parts(backbone)

    @property
    def backbone(self) -> Any:
        """The backbone; None once it is gone, and in a copy of a part of it."""
        return self._backbone()

    @property
    def heads(self) -> Any:
        """The module with auxiliary heads, or None."""
        return self._heads()
