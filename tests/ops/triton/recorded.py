"""Launches of Triton's kernels written down instead of made: what runs, with which arguments, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch
from cubins import Cubin, compiled
from torch import Tensor

MODULES = (
    "attend", "class_rows", "cluster", "fuse", "match", "merge", "points", "restore", "select", "tiled", "ward",
)  # fmt: skip
TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int64: "i64", torch.int32: "i32",
}  # fmt: skip


class Launch(NamedTuple):
    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def compiled(self, arch: int) -> Cubin:
        """As Triton compiles it when it is launched so: the types of numbers, and what 16 divides."""
        names, special = self.kernel.arg_names, {*self.kernel.do_not_specialize}
        given = dict(zip(names, self.args, strict=False))
        constants = {name: value for name, value in self.kwargs.items() if name in names}
        numbers = {name: value for name, value in given.items() if type(value) is int and name not in special}
        constants |= {name: value for name, value in numbers.items() if value == 1}
        types = {name: type_of(value) for name, value in given.items() if name not in constants}
        return compiled(
            self.kernel, types, constants,
            warps=self.kwargs.get("num_warps", 4), stages=self.kwargs.get("num_stages", 3), arch=arch,
            multiples_of_16=[name for name, value in numbers.items() if value != 1 and value % 16 == 0],
        )  # fmt: skip

    def same_as(self, other: Launch) -> bool:
        """Whether both are one cubin; numbers differ in what divides them only by chance."""
        return self.kernel is other.kernel and self.described() == other.described()

    def described(self) -> tuple[Any, ...]:
        return (*(x.dtype if isinstance(x, Tensor) else type(x) for x in self.args), *self.kwargs.items())


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


@contextmanager
def recorded(zeros: bool = True) -> Iterator[list[Launch]]:
    """Every launch of the library in this context, as on NVIDIA's GPUs; `zeros`: outputs are, because others may take
    what no kernel has written for places."""
    found: list[Launch] = []

    def start(kernel: Any, x: Tensor) -> Any:
        class Started:
            def __getitem__(self, grid: Any) -> Callable[..., None]:
                return lambda *args, **kwargs: found.append(Launch(kernel, args, kwargs))

        return Started()

    with pytest.MonkeyPatch.context() as patch:
        for name in MODULES:
            module = import_module(f"tokenreduce.ops.triton.{name}")
            patch.setattr(module, "start", start)
            if hasattr(module, "has_assembly"):
                patch.setattr(module, "has_assembly", lambda: True)
        if zeros:
            patch.setattr(torch, "empty", torch.zeros)
        yield found
