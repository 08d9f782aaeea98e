"""What was measured on a GPU: speed-ups of whole models in CUDA graphs, by measurements that ship with the library."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parent / "gpu.json"
FARTHEST = 2.0  # no row stands for a width, a count of tokens or a batch that differs by more than this factor
WORTH = 1.05  # a speed-up below this is none: what is around the model costs as much


@dataclass(frozen=True)
class GpuRow:
    """One model on one batch, half precision; speed-ups are over the unpatched model in the same mode."""

    gpu: str
    model: str
    width: int
    tokens: int
    batch_size: int
    method: str
    graph_speedup: float
    eager_speedup: float | None

    @property
    def pays(self) -> bool:
        """Whether a graph of the patched model is worth it."""
        return self.graph_speedup >= WORTH

    def distance(self, width: int, tokens: int, batch_size: int) -> float:
        """The largest factor between this row and a case."""
        pairs = ((self.width, width), (self.tokens, tokens), (self.batch_size, batch_size))
        return math.exp(max(abs(math.log(mine / given)) for mine, given in pairs))


def nearest_row(method: str, width: int, tokens: int, batch_size: int) -> GpuRow | None:
    """The shipped row of `method` that is nearest to a case; None if none is near."""
    case = width, tokens, batch_size
    near = [row for row in shipped_rows() if row.method == method and row.distance(*case) <= FARTHEST]
    return min(near, key=lambda row: row.distance(*case), default=None)


def shipped_rows() -> list[GpuRow]:
    """What was measured for this version of the library; nothing if it never ran on a GPU."""
    if not SHIPPED.exists():
        return []
    content = json.loads(SHIPPED.read_text())
    return [GpuRow(content["gpu"], **row) for row in content["rows"]]
