"""CUDA graphs without a GPU: what is captured is recorded operator by operator, and a replay runs the record again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for a GPU, and so fails while a stream is captured.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")
WAITING += ("unique_consecutive", "_linalg_eigh", "linalg_eigh", "bincount")


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def storages(value: Any) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(value)}


class FakeGraph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`. As on a GPU nothing has been computed when a capture ends: what it made holds
    garbage until the first replay."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1:2]))
        if name in WAITING or masks:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **kwargs or {})
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def spoil(self) -> None:
        for _, args, kwargs, out in self.steps:
            for tensor in tensors(out):
                if tensor.untyped_storage().data_ptr() not in storages((args, kwargs)):
                    tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        for func, args, kwargs, out in self.steps:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if storages(old) != storages(new):
                    old.copy_(new)


@contextmanager
def capture(graph: FakeGraph, **_: Any) -> Iterator[None]:
    with graph:
        yield
    graph.spoil()


@pytest.fixture
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of `torch.cuda` that records graphs, for the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"CUDAGraph": FakeGraph, "graph": capture, "Stream": lambda: stream, "current_stream": lambda: stream}
    for name, fake in (fakes | {"stream": lambda stream: nullcontext()}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("tokenreduce.patching.capturing.is_gpu", lambda device: True)
