"""Devices that are not there: tensors that say that they are on one, compute on the CPU, and refuse to meet others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

ONE, TWO = torch.device("lazy", 0), torch.device("lazy", 1)  # a kind that needs no library


class There(Tensor):
    """`inner`, a CPU tensor, as one on `device`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=device, requires_grad=False
        )

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Made(TorchDispatchMode):
    """Tensors can be made there, too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Values(TorchFunctionMode):
    """Of values that Python has, which PyTorch copies below the dispatcher."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            made = torch.tensor(*args, **kwargs | {"device": "cpu"})
            return made if device.type == "cpu" else There(made, device)
        if function is Tensor.__getitem__ and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1])
        if function is Tensor.__setitem__ and isinstance(args[0], There) and not isinstance(args[2], Tensor):
            args = *args[:2], torch.tensor(args[2], dtype=args[0].dtype)
        return function(*args, **kwargs)


@contextmanager
def devices() -> Iterator[None]:
    """A block in which there are such devices."""
    with Made(), Values(), torch.no_grad():
        yield


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result, where its tensors are: all have to be at one place, but for numbers, indices on the CPU, and what is
    copied from elsewhere."""
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    name = function.overloadpacket.__name__
    indices = [id(x) for x in args[1]] if name in ("index", "index_put", "index_put_") else []
    met = {x.device for x in given if x.device.type != "cpu" or (x.ndim and id(x) not in indices)}
    if len(met) > 1 and name not in ("copy_", "_to_copy"):
        raise RuntimeError(f"{name} met tensors on {sorted(map(str, met))}")
    where = args[0].device if name == "copy_" else next(iter(met), torch.device("cpu"))
    if kwargs.get("device") is not None:
        where, kwargs = torch.device(kwargs["device"]), kwargs | {"device": torch.device("cpu")}
    with _disable_current_modes():
        out = function(*tree_map(plain, args), **tree_map(plain, kwargs))
    if where.type == "cpu":
        return out
    known = {id(x.inner): x for x in given if isinstance(x, There)}  # what was changed in place
    return tree_map(lambda x: known[id(x)] if id(x) in known else there(x, where), out)


def plain(x: Any) -> Any:
    return x.inner if isinstance(x, There) else x


def place(module: nn.Module, device: torch.device) -> None:
    """Put a module there; what it is called with follows, as `accelerate` does it, within `forward`."""
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                part._parameters[name] = nn.Parameter(there(x.detach(), device), requires_grad=False)
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else there(x, device)
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*send(args, device), **send(kwargs, device))  # type: ignore[method-assign]


def there(x: Any, device: torch.device) -> Any:
    """`x`, wherever it is, there, if it is a tensor."""
    return There(plain(x), device) if isinstance(x, Tensor) else x


def send(x: Any, device: torch.device) -> Any:
    """The tensors in lists and dicts there; nothing else is changed."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, x)
