"""The numba kernel of `kkz`. Imported on first use: numba is optional, and importing it takes half a second."""

from __future__ import annotations

from typing import Any

import numba
import numpy


def _farthest_first(distance: Any, first: Any, count: int) -> Any:
    batch, n = distance.shape[0], distance.shape[1]
    chosen = numpy.empty((batch, count), numpy.int64)
    for b in numba.prange(batch):
        gap = numpy.full(n, numpy.inf, numpy.float32)
        newest = first[b]
        chosen[b, 0] = newest
        gap[newest] = -1
        for k in range(1, count):
            best = 0
            for i in range(n):
                gap[i] = min(gap[i], distance[b, newest, i])
                if gap[i] > gap[best]:
                    best = i
            newest = best
            chosen[b, k] = newest
            gap[newest] = -1
    return chosen


try:
    farthest_first = numba.njit(_farthest_first, parallel=True, cache=True)
except RuntimeError:  # numba found no place where it may write its cache
    farthest_first = numba.njit(_farthest_first, parallel=True)
