"""Finding the backbone in a model, and the adapter that knows it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.reduction import Reduction
from tokenreduce.patches.shared.adapter import Adapter
from tokenreduce.patching.foreign import foreign

# Modules that pass on what the module inside returns: containers, and wrappers that distribute, compile or adapt.
TRANSPARENT = (
    "torch.nn.modules.container",
    "torch.nn.parallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel",
    "torch._dynamo",
    "peft.",
    "tokenreduce.lab.",
)
PATCHES = "tokenreduce.patches"  # a folder for each library in it, a file for each family there
LANGUAGE = "vision_language"  # the folder of transformers' models that hold a vision tower and a language model
# The libraries with adapters, and what to install for each.
LIBRARIES = {
    "timm": "'tokenreduce[timm]'",
    "transformers": "'tokenreduce[transformers]'",
    "torchvision": "torchvision",
    "open_clip": "'tokenreduce[open-clip]'",
}


def find_backbone(model: nn.Module) -> tuple[str, nn.Module, Adapter]:
    """The one backbone inside `model` that an adapter knows: its name in the model, the module, the adapter."""
    every = candidates(need_module(model))
    found = [part for part in every if part[2].place == "encoder"]
    if not found and every:
        raise InvalidValueError(
            f"the vision tower of this {type(model).__name__} is of no family that tokenreduce knows; give keep=0.1 to "
            "let a tenth of each image's tokens enter its language model"
        )
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


def find_language(model: nn.Module) -> tuple[str, nn.Module, Any]:
    """The one part of `model` that holds a vision tower and a language model of a known family."""
    found = [part for part in candidates(need_module(model)) if part[2].place == "language"]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{name or 'the model itself'} ({type(module).__name__})" for name, module, _ in found)
        raise InvalidValueError(f"{type(model).__name__} holds several vision-language models: {names}; patch one")
    known = ", ".join(family for _, family in _families(LANGUAGE))
    raise InvalidValueError(
        f"{type(model).__name__} holds no vision-language model that tokenreduce knows (known, of transformers: "
        f"{known}), and keep= is the budget of what enters a language model; for a vision transformer give ratio= or "
        "flops="
    )


def can_keep(model: nn.Module) -> bool:
    """Whether `model` takes `keep=`."""
    return any(adapter.place == "language" for _, _, adapter in candidates(model))


def adapters() -> list[Adapter]:
    """The adapters whose library is imported already; a model of a library that is not cannot exist."""
    return [
        importlib.import_module(f"{PATCHES}.{library}.{family}").ADAPTER
        for library, family in (*_families(), *_families(LANGUAGE))
        if _can_exist(library, family)
    ]


def families() -> dict[str, list[str]]:
    """The names of all families by library, also those whose library is not installed."""
    found: dict[str, list[str]] = {}
    for library, family in (*_families(), *_families(LANGUAGE)):
        found.setdefault(library, []).append(family)
    return found


def _families(folder: str = "") -> list[tuple[str, str]]:
    """All families of backbones by library and file, or those in one `folder`, also those whose library is not
    imported: `patches/timm/vit.py` is ("timm", "vit"). Files that begin with an underscore are what families share."""
    return [
        (library, module.name)
        for library, folders in _folders().items()
        for module in pkgutil.iter_modules(folders)
        if not module.name.startswith("_") and (library == folder if folder else library != LANGUAGE)
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
    if library in ("transformers", LANGUAGE):
        return f"transformers.models.{family}.modeling_{family}" in sys.modules
    return library in sys.modules


def reduction_of(model: nn.Module) -> Reduction:
    """The patch of the backbone in the model, or an error that says that there is none."""
    reductions = _patches(model, "encoder")
    if len(reductions) != 1:
        raise InvalidValueError(
            f"{type(model).__name__} is not patched; call tokenreduce.patch(model, method, flops=0.6) first"
            if not reductions
            else f"{type(model).__name__} holds {len(reductions)} patched backbones; pass the one you mean"
        )
    return reductions[0]


def language_reduction_of(model: nn.Module) -> LanguageReduction | None:
    """The patch of what enters the language model in `model`, or None."""
    found = _patches(model, "language")
    return found[0] if len(found) == 1 else None


def is_patched(model: nn.Module) -> bool:
    """Whether a backbone in `model` is patched, whatever is done before a language model."""
    return bool(_patches(model, "encoder"))


def _patches(model: nn.Module, place: str) -> list[Any]:
    patched = [patch_of(part) for _, part, adapter in candidates(need_module(model)) if adapter.place == place]
    return [reduction for reduction in patched if reduction is not None]


def around(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the backbone `name`, outermost first, without wrappers and containers."""
    parts = name.split(".") if name else []
    holders = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    return [m for m in holders if not type(m).__module__.startswith(TRANSPARENT)]


def candidates(model: nn.Module) -> list[tuple[str, nn.Module, Adapter]]:
    """All parts of `model` that an adapter knows: backbones, and vision-language models with what is in them."""
    known = adapters()
    found: list[tuple[str, nn.Module, Adapter]] = []
    for name, module in model.named_modules():
        # A vision-language model has a backbone in it that can be patched, too.
        holders = [outer for outer, _, adapter in found if adapter.place == "encoder"]
        inside = any(name.startswith(f"{outer}." if outer else "") for outer in holders)
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
