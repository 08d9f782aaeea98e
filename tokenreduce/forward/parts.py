"""`Parts`: which modules a model is made of, so that a later look says quickly whether one was added or replaced."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import nn


class Parts:
    """The modules of a model, held weakly. A copy or a pickle holds none, and does not stand."""

    def __init__(self, model: nn.Module | None = None) -> None:
        modules = [] if model is None else [*model.modules()]
        parents = [(m, list(m._modules.values())) for m in modules if m._modules]
        self._inside = [(weakref.ref(m), [_weakly(child) for child in children]) for m, children in parents]
        # Parametrizations are put into the module whose weight they make.
        self._alone = [weakref.ref(m) for m in modules if not m._modules and m._parameters]

    def stand(self) -> bool:
        """Whether each module still has exactly the parts that it had."""
        for held, children in self._inside:
            module = held()
            if module is None or [*module._modules.values()] != [child() for child in children]:
                return False
        for held in self._alone:
            module = held()
            if module is None or module._modules:
                return False
        return bool(self._inside)

    def __deepcopy__(self, memo: dict[int, object]) -> Parts:
        return Parts()

    def __reduce__(self) -> tuple[type[Parts], tuple[()]]:
        return Parts, ()


def _nothing() -> None:
    """Stands for a reference to a part that is None."""


def _weakly(module: nn.Module | None) -> Callable[[], nn.Module | None]:
    return _nothing if module is None else weakref.ref(module)
