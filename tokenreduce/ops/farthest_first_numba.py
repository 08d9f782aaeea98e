"""The numba kernel of `kkz`. Imported on first use: numba is optional, and importing it takes half a second."""

from __future__ import annotations

from typing import Any

import numba
import numpy


def _farthest_first(distance: Any, first: int, chosen: Any) -> None:
    """Fill `chosen (count,)` for one image with distances `(N, N)`."""
    n = distance.shape[0]
    gap = numpy.full(n, numpy.inf, numpy.float32)
    newest = first
    chosen[0] = newest
    gap[newest] = -1
    for k in range(1, chosen.shape[0]):
        best = 0
        for i in range(n):
            gap[i] = min(gap[i], distance[newest, i])
            if gap[i] > gap[best]:
                best = i
        newest = best
        chosen[k] = newest
        gap[newest] = -1


# Not parallel: numba's threading layers abort where two threads enter, or after a fork.
try:
    farthest_first = numba.njit(_farthest_first, nogil=True, cache=True)
except RuntimeError:  # numba found no place where it may write its cache
    farthest_first = numba.njit(_farthest_first, nogil=True)
