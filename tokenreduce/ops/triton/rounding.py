"""Numbers of programs and sizes of tiles, on the host. Triton's own functions for them also serve its compiler, and
cost microseconds a call."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    """How many of `b` hold `a`."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of 2 from `n` on; a number that tiles are compiled for, also where `n` is a symbol."""
    return 1 << max(0, int(n) - 1).bit_length()
