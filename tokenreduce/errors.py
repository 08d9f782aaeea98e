"""Errors: every message names what was given, what is valid and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TokenReduceError(Exception):
    """Base of the library's own errors, so that callers can catch them all."""


class InvalidValueError(TokenReduceError, ValueError):
    """A value that is out of range, unknown or impossible for this model."""


class InvalidTypeError(TokenReduceError, TypeError):
    """An argument of the wrong type, or arguments that exclude each other."""


class NothingSavedWarning(UserWarning):
    """A patch that works, but saves nothing in the part of the model that costs most."""


def unknown(what: str, given: object, valid: Iterable[str]) -> InvalidValueError:
    """An error for a name that is not in `valid`, with the nearest valid name when there is one."""
    names = sorted(valid)
    close = get_close_matches(str(given), names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidValueError(f"unknown {what} {given!r}; valid: {', '.join(names) or 'none'}{hint}")
