"""Finding the backbone in a model, and the adapter that knows it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.reduction import Reduction

if TYPE_CHECKING:
    from tokenreduce.patches.base import Adapter

# Modules that pass on what the module inside returns: containers, and wrappers that distribute, compile or adapt.
TRANSPARENT = ("torch.nn.modules.container", "torch.nn.parallel", "torch._dynamo", "peft.", "tokenreduce.evaluation.")
# The libraries with adapters, and what to install for each.
LIBRARIES = {
    "timm": "'tokenreduce[timm]'",
    "transformers": "'tokenreduce[transformers]'",
    "torchvision": "torchvision",
    "open_clip": "'tokenreduce[open_clip]'",
}


def find_backbone(model: nn.Module) -> tuple[str, nn.Module, Adapter]:
    """The one backbone inside `model` that an adapter knows: its name in the model, the module, the adapter."""
    found = candidates(need_module(model))
    if not found:
        missing = [f"{library} (pip install {what})" for library, what in LIBRARIES.items() if not _installed(library)]
        raise InvalidValueError(
            f"{type(model).__name__} holds no backbone that tokenreduce knows; known: {', '.join(_families())}. "
            + (f"Not installed here: {', '.join(missing)}. " if missing else "")
            + "A new family is one file in patches/, see the README; tokenreduce.plan and apply work without a model"
        )
    if len(found) > 1:
        names = ", ".join(f"{name or 'the model itself'} ({type(module).__name__})" for name, module, _ in found)
        raise InvalidValueError(f"{type(model).__name__} holds several backbones: {names}; patch the one you mean")
    return found[0]


def adapters() -> list[Adapter]:
    """The adapters whose library is imported already; a model of a library that is not cannot exist."""
    return [importlib.import_module(f"tokenreduce.patches.{name}").ADAPTER for name in _files() if _can_exist(name)]


def _files() -> list[str]:
    """Names of the files in `patches/`."""
    return [module.name for module in pkgutil.iter_modules(importlib.import_module("tokenreduce.patches").__path__)]


def _families() -> list[str]:
    """All families by library and file, also those whose library is not imported: "timm vit", "transformers clip"."""
    files = [
        (library, name.removeprefix(f"{library}_"))
        for name in _files()
        for library in LIBRARIES
        if name.startswith(f"{library}_")
    ]
    return [f"{library} {family}" for library, family in files]


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ImportError:
        return False


def _can_exist(name: str) -> bool:
    """Whether a model for the adapter in file `name` can exist: `timm_vit` is for timm, `transformers_dpt` for the
    model type dpt of transformers, which imports each type apart."""
    if name.startswith("transformers_"):
        kind = name.removeprefix("transformers_")
        return f"transformers.models.{kind}.modeling_{kind}" in sys.modules
    parts = name.split("_")
    return any("_".join(parts[:i]) in sys.modules for i in range(1, len(parts)))


def reduction_of(model: nn.Module) -> Reduction:
    """The patch of the model, or an error that says that there is none."""
    patched = [patch_of(backbone) for _, backbone, _ in candidates(need_module(model))]
    reductions = [reduction for reduction in patched if reduction is not None]
    if len(reductions) != 1:
        raise InvalidValueError(
            f"{type(model).__name__} is not patched; call tokenreduce.patch(model, method, flops=0.6) first"
            if not reductions
            else f"{type(model).__name__} holds {len(reductions)} patched backbones; pass the one you mean"
        )
    return reductions[0]


def patch_of(backbone: nn.Module) -> Reduction | None:
    return vars(backbone).get("_tokenreduce")


def around(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the backbone `name`, outermost first, without wrappers and containers."""
    parts = name.split(".") if name else []
    holders = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    return [m for m in holders if not type(m).__module__.startswith(TRANSPARENT)]


def candidates(model: nn.Module) -> list[tuple[str, nn.Module, Adapter]]:
    known = adapters()
    found: list[tuple[str, nn.Module, Adapter]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}." if outer else "") for outer, _, _ in found)
        adapter = None if inside else next((a for a in known if a.matches(module)), None)
        if adapter is not None:
            found.append((name, module, adapter))
    return found


def need_module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"model is {type(model).__name__}; it must be a torch.nn.Module, such as a timm vision transformer"
        )
    return model
