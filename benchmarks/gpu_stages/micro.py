"""Each operator alone, by every implementation, eager and in a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpu_stages.choices import choices
from gpu_stages.clock import first_call, graphed, microseconds
from gpu_stages.operators import Tensors, operators
from gpu_stages.session import Facts, Session
from tokenreduce.ops.native import dispatch

SECONDS = 15.0
# batch, tokens, channels, removed
SHAPES = (
    (256, 196, 384, 13),
    (32, 196, 384, 13),
    (32, 1369, 1024, 57),
    (1, 1369, 1024, 57),
    (32, 196, 1024, 8),
    (1, 196, 384, 13),
)
TINY = ((1, 16, 64, 3),)


def run(session: Session) -> None:
    for shape in SHAPES if not session.tiny else TINY:
        for name, call in operators(session.device, session.dtype, *shape).items():
            for choice in choices(session):
                key = {"operator": name, "shape": list(shape), "choice": choice}
                session.measure(lambda choice=choice, call=call: timed(choice, call), **key)


def timed(choice: str, call: Callable[[], Tensors]) -> Facts:
    with dispatch.using(choice), torch.inference_mode():
        _, first = first_call(call)
        eager = microseconds(call, 7, 2e-3)
        return {"graph_us": microseconds(graphed(call), 7, 2e-3), "eager_us": eager, "first_s": first}
