"""Checks of a method's options."""

from __future__ import annotations

import math
from typing import Any

from tokenreduce.errors import InvalidTypeError, InvalidValueError


def check_option(name: str, value: object, valid: tuple[object, ...] | type) -> None:
    """Raise unless `value` is one of the values `valid`, or an instance of the type `valid`."""
    if isinstance(valid, tuple):
        if value not in valid:
            raise InvalidValueError(f"option {name} is {value!r}; valid: {', '.join(map(repr, valid))}")
    elif not isinstance(value, valid) or (valid is int and isinstance(value, bool)):
        raise InvalidTypeError(f"option {name} is {value!r}; it must be of type {valid.__name__}")


def check_count(name: str, value: Any, optional: bool = False) -> None:
    """Raise unless the option `name` has a whole number of 1 or more as its `value`, or None if that is valid."""
    if optional and value is None:
        return
    check_option(name, value, int)
    if value < 1:
        raise InvalidValueError(f"option {name} is {value}; it must be 1 or more{', or None' if optional else ''}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raise unless the option `name` has a number between `low` and `high` as its `value`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(f"option {name} is {value!r}; it must be a number")
    if not low <= value <= high or math.isinf(value):
        valid = f"lie in [{low}, {high}]" if math.isfinite(high) else f"be finite and at least {low}"
        raise InvalidValueError(f"option {name} is {value!r}; it must {valid}")
