"""How many CUDA kernels a reducing layer launches, counted without a GPU: fake tensors say that they are on one, and a
mode sees the operators.

What an operator launches is as PyTorch's sources have it: 0 for views and for memory that nothing writes to, `KERNELS`
for those that launch several, 1 for all others. Factories and copies count, so does what autocast or promotion casts.
Constants that are copied from the CPU have a name of their own: fake tensors are not kept, so that they are copied in
every layer, and on a GPU once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import timm
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce import patch, report
from tokenreduce.budget.phase import current_phase
from tokenreduce.ops.linkage import agglomerate_reference, members_of, mirrored

KERNELS = {
    "sort": 4,  # the indices, two copies and the sort
    "argsort": 4,
    "index_put": 14,  # checks and bounds of the index, a radix sort and the sums
    "index_put_": 13,
    "constant_pad_nd": 2,  # filled, then copied into
    "scatter": 2,  # copied, then written to
    "scatter_add": 2,
    "scatter_reduce": 2,
    "index_add": 2,
}
MEMORY = {"empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "detach", "_unsafe_view", "_reshape_alias"}


def kernels(func: Any) -> int:
    """What the operator launches."""
    name = func._schema.name.split("::")[1]
    if func.namespace == "prim" or func.is_view or name in MEMORY:
        return 0
    return KERNELS.get(name, 1)


CONSTANT = "aten._to_copy.constant"


def name_of(func: Any, args: Any, kwargs: Any) -> str:
    """What it is counted as."""
    copied = func is torch.ops.aten._to_copy.default and args[0].is_cpu
    return CONSTANT if copied and torch.device(kwargs.get("device") or "cpu").type != "cpu" else str(func)


def agglomerated(distance: Tensor, keep: int, linkage: str, sizes: Tensor | None = None) -> Tensor:
    """What the operator `agglomerate` runs on a GPU, with a round for every merge."""
    between = mirrored(distance)
    return agglomerate_reference(between, members_of(between, sizes), keep, linkage)


class Launches(TorchDispatchMode):
    """Counts the kernels of the reducer's work by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.tokenreduce.agglomerate.default:
            with self:
                return agglomerated(*args, **kwargs or {})
        if current_phase() == "reducer":
            self.counted[name_of(func, args, kwargs or {})] += kernels(func)
        return func(*args, **kwargs or {})


def launches(method: str, **budget: Any) -> tuple[float, Counter[str]]:
    """Kernels of a reducing layer of DeiT-S in fp16 with a batch of 8, on average, and all of them by operator."""
    reducing, counted = launches_of_all(method, **budget)
    return sum(counted.values()) / reducing, counted


def launches_of_all(method: str, **budget: Any) -> tuple[int, Counter[str]]:
    """How many layers reduce, and kernels of all of them by operator."""
    model = patch(timm.create_model("deit_small_patch16_224").eval(), method, **budget)
    fake, counter = FakeTensorMode(), Launches()
    state = {name: fake.from_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}
    with fake, torch.no_grad():
        state = {name: tensor.to("cuda", torch.float16) for name, tensor in state.items()}
        images = torch.empty(8, 3, 224, 224, dtype=torch.float16, device="cuda")
        with counter:
            functional_call(model, state, (images,))
    return len(report(model).maps), counter.counted
