"""Attributes of a map that are made when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class when_asked:  # noqa: N801  a decorator; functools.cached_property takes a lock, which torch.compile cannot trace
    """Decorator for methods without arguments: an attribute that holds what the method returned at the first look."""

    def __init__(self, make: Callable[[Any], Tensor]) -> None:
        self.make, self.name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        made = self.make(instance)
        setattr(instance, self.name, made)
        return made
