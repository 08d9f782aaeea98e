"""Finding the backbone in a model, and the adapter that knows it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.reduction import Reduction
from tokenreduce.patches.shared.adapter import Adapter
from tokenreduce.patching.foreign import foreign

# Modules that pass on what the module inside returns: containers, and wrappers that distribute, compile or adapt.
TRANSPARENT = ("torch.nn.modules.container", "torch.nn.parallel", "torch._dynamo", "peft.", "tokenreduce.lab.")
PATCHES = "tokenreduce.patches"  # a folder for each library in it, a file for each family there
# The libraries with adapters, and what to install for each.
LIBRARIES = {
    "timm": "'tokenreduce[timm]'",
    "transformers": "'tokenreduce[transformers]'",
    "torchvision": "torchvision",
    "open_clip": "'tokenreduce[open-clip]'",
}


def find_backbone(model: nn.Module) -> tuple[str, nn.Module, Adapter]:
    """The one backbone inside `model` that an adapter knows: its name in the model, the module, the adapter."""
    found = candidates(need_module(model))
    if not found:
        reason = foreign(model)
        if reason:
            raise InvalidValueError(f"{type(model).__name__} holds no backbone that tokenreduce can reduce: {reason}")
        missing = [f"{library} (pip install {what})" for library, what in LIBRARIES.items() if not _installed(library)]
        known = ", ".join(f"{library} {family}" for library, family in _families())
        raise InvalidValueError(
            f"{type(model).__name__} holds no backbone that tokenreduce knows; known: {known}. "
            + (f"Not installed here: {', '.join(missing)}. " if missing else "")
            + "A new family is one file in patches/, see CONTRIBUTING.md; tokenreduce.plan and apply need no model"
        )
    if len(found) > 1:
        names = ", ".join(f"{name or 'the model itself'} ({type(module).__name__})" for name, module, _ in found)
        raise InvalidValueError(f"{type(model).__name__} holds several backbones: {names}; patch the one you mean")
    return found[0]


def adapters() -> list[Adapter]:
    """The adapters whose library is imported already; a model of a library that is not cannot exist."""
    return [
        importlib.import_module(f"{PATCHES}.{library}.{family}").ADAPTER
        for library, family in _families()
        if _can_exist(library, family)
    ]


def _families() -> list[tuple[str, str]]:
    """All families by library and file, also those whose library is not imported: `patches/timm/vit.py` is ("timm",
    "vit"). Files that begin with an underscore are what families of a library share."""
    return [
        (library, module.name)
        for library, folders in _folders().items()
        for module in pkgutil.iter_modules(folders)
        if not module.name.startswith("_")
    ]


def _folders() -> dict[str, list[str]]:
    """The folders with a library's families, by library: those of `LIBRARIES` first, then any other."""
    parts: list[str] = [*importlib.import_module(PATCHES).__path__]
    others = [module.name for module in pkgutil.iter_modules(parts) if module.ispkg and module.name != "shared"]
    return {name: [str(Path(part) / name) for part in parts] for name in (*LIBRARIES, *others)}


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ImportError:
        return False


def _can_exist(library: str, family: str) -> bool:
    """Whether a model of the family can exist: transformers imports each of its model types apart."""
    if library == "scan":  # models of our own
        return f"tokenreduce.models.{family}" in sys.modules
    if library == "transformers":
        return f"transformers.models.{family}.modeling_{family}" in sys.modules
    return library in sys.modules


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
