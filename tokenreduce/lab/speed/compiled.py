"""Mode "compile": `torch.compile(fullgraph=True)`, on a GPU with `reduce-overhead`, which records graphs itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenreduce.lab.speed.timing import Call

LANES = 256  # models of one class, each with compiled code of its own


def ready(model: nn.Module, batch: Tensor) -> Call:
    """A forward of the compiled `model` on `batch`; compiled here."""
    compiled = torch.compile(model, fullgraph=True, dynamic=False, mode="reduce-overhead" if batch.is_cuda else None)

    def forward() -> object:
        torch.compiler.cudagraph_mark_step_begin()  # the last outputs may be overwritten
        return compiled(batch)

    # All lanes run the same lines of Python, for which PyTorch keeps 8 compilations and then refuses.
    with torch._dynamo.config.patch(recompile_limit=LANES, accumulated_recompile_limit=LANES):
        forward()
    return forward
