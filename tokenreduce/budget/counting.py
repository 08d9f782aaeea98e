"""Counts the multiply-adds of one forward, split into the model's own, the reducer's and the restoring work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenreduce.errors import InvalidTypeError
from tokenreduce.ops.products import by_index


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one forward by who caused them.

    Unit: MACs for the whole batch; one multiply-add = 1 MAC. Papers write "GFLOPs" and mean GMACs (1e9 MACs).
    `uncounted` maps each operator whose work is unknown to its number of calls; where it is not empty, the sums are
    lower bounds.
    """

    model: int
    reducer: int
    restore: int
    uncounted: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Sum of `model`, `reducer` and `restore` in MACs."""
        return self.model + self.reducer + self.restore

    def __str__(self) -> str:
        size, unit = next((s for s in ((1e9, "GMACs"), (1e6, "MMACs")) if self.total >= s[0] / 10), (1e3, "KMACs"))
        parts = ", ".join(f"{name} {getattr(self, name) / size:.2f}" for name in ("model", "reducer", "restore"))
        missing = ", ".join(f"{name} x{calls}" for name, calls in self.uncounted.items())
        return f"{self.total / size:.2f} {unit} ({parts})" + (f", uncounted: {missing}" if missing else "")


def count_flops(model: Callable[..., Any], input: torch.Tensor | tuple[Any, ...] | Mapping[str, Any]) -> FlopCount:
    """Count the multiply-adds of one forward of `model` on `input` (a tensor, a tuple of arguments or a dict of them).

    Unit: MACs; one multiply-add = 1 MAC, and papers write "GFLOPs" and mean GMACs. As in those papers only matrix
    products, attention, distance matrices and convolutions count; norms, softmax, element-wise work, pooling,
    resampling, sorting and indexing are free. Every other operator (FFT, matrix decompositions, custom operators) is
    listed in `uncounted`, unless `torch.utils.flop_counter.register_flop_formula` gave it a formula (in FLOPs, 2 per
    MAC). Code that bypasses PyTorch's dispatcher (NumPy, directly launched Triton kernels, other threads) is not seen.

    Runs without gradients and, if the model is compiled, eagerly; train or eval mode stays as it is.
    """
    if not callable(model):
        raise InvalidTypeError(f"model is {model!r}; give a torch.nn.Module, or a function that runs one")
    if not isinstance(input, torch.Tensor | tuple | Mapping):
        raise InvalidTypeError(
            f"input is a {type(input).__name__}; give a tensor, a tuple of positional arguments or a dict of keyword "
            "arguments of the model's forward"
        )
    kwargs = input if isinstance(input, Mapping) else {}
    args = input if isinstance(input, tuple) else () if isinstance(input, Mapping) else (input,)
    from tokenreduce.budget.operators import MacCounter

    # A model compiled with fullgraph=True refuses to run under any counter: force_eager.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), MacCounter() as counter, by_index():
        model(*args, **kwargs)
    macs = {phase: sum(flops.values()) // 2 for phase, flops in counter.get_flop_counts().items()}
    return FlopCount(macs.get("model", 0), macs.get("reducer", 0), macs.get("restore", 0), dict(counter.uncounted))
