"""The registry of methods. A method is one file in `reducers/methods/`, or a class anywhere that is registered."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.reducers.contract import EVERYWHERE, PLACEMENTS, POSITIONS, SHAPES, Reducer
from tokenreduce.reducers.entries import ENTRIES

METHODS = f"{__name__.rpartition('.')[0]}.methods"  # the folder whose files register themselves
# What patch and plan take beside options.
ARGUMENTS = ENTRIES.keys() | {
    "model", "method", "x", "flops", "r", "ratio", "keep", "layers", "schedule", "restore", "prop_attn", "scan_conv",
    "scan_gap", "sizes", "prefix", "depth",
}  # fmt: skip
_registry: dict[str, type[Reducer]] = {}


def register(cls: type[Reducer]) -> type[Reducer]:
    """Class decorator that adds a frozen dataclass derived from `Reducer` to the methods, under its `name`.

    Raises: ValueError for a taken name or impossible facts, TypeError for something that is not a Reducer.
    """
    if not (isinstance(cls, type) and issubclass(cls, Reducer)):
        raise InvalidTypeError(f"register takes a class derived from tokenreduce.Reducer, not {cls!r}")
    for fact in ("name", "kind", "paper", "year"):
        if not hasattr(cls, fact):
            raise InvalidValueError(f"{cls.__name__} lacks the class attribute {fact!r}; see tokenreduce.Reducer")
    if "__dataclass_params__" not in vars(cls) or not vars(cls)["__dataclass_params__"].frozen:
        raise InvalidTypeError(
            f"{cls.__name__} must be a frozen dataclass: put @dataclass(frozen=True) below @register"
        )
    for fact in ("shape", "scan_shape"):
        if getattr(cls, fact) not in SHAPES:
            raise unknown(f"{fact} of {cls.__name__}", getattr(cls, fact), SHAPES)
    if cls.plan is Reducer.plan:
        raise InvalidValueError(f"{cls.__name__} has no plan(tokens, keep, state) method")
    if cls.placement not in PLACEMENTS or not cls.needs | cls.uses | cls.between <= ENTRIES.keys():
        raise InvalidValueError(
            f"{cls.__name__}: placement {cls.placement!r} must be one of {PLACEMENTS} "
            f"and needs and uses {sorted(cls.needs | cls.uses | cls.between)} among {sorted(ENTRIES)}"
        )
    options = {field.name for field in dataclasses.fields(cls)}
    if options & ARGUMENTS:
        named = ", ".join(sorted(options & ARGUMENTS))
        raise InvalidValueError(
            f"{cls.__name__}: {named} would be taken for an argument of patch or plan; give the option another name"
        )
    if not cls.places or not cls.places <= EVERYWHERE or cls.positions not in POSITIONS:
        raise InvalidValueError(
            f"{cls.__name__}: places {sorted(cls.places)} must be some of {sorted(EVERYWHERE)} and positions "
            f"{cls.positions!r} one of {POSITIONS}"
        )
    if not cls.adaptive == (cls.decide is not Reducer.decide) == bool(cls.budgeted):
        raise InvalidValueError(f"{cls.__name__}: an adaptive method, and no other, has decide(...) and `budgeted`")
    if not cls.__module__.startswith(f"{METHODS}."):
        _load_builtin()
    taken = _registry.get(cls.name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InvalidValueError(
            f"method {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name"
        )
    _registry[cls.name] = cls
    return cls


def methods(place: str | None = None) -> list[str]:
    """Names of all registered methods, or of those that run in one place: "encoder" or "language", see `Reducer`."""
    _load_builtin()
    if place is not None and place not in EVERYWHERE:
        raise unknown("place", place, EVERYWHERE)
    return sorted(name for name, cls in _registry.items() if place is None or place in cls.places)


def lookup(name: str) -> type[Reducer]:
    """The class of the method `name`."""
    _load_builtin()
    if not isinstance(name, str):
        raise InvalidTypeError(f"method must be a name such as 'tome', not {name!r}; valid: {', '.join(methods())}")
    if name not in _registry:
        raise unknown("method", name, _registry)
    return _registry[name]


def create(name: str, options: dict[str, Any]) -> Reducer:
    """The method `name` with `options`; unknown options and wrong values raise."""
    cls = lookup(name)
    valid = [f.name for f in dataclasses.fields(cls)]
    for option in options:
        if option not in valid:
            raise unknown(f"option of {name}", option, valid)
    return cls(**options)


def describe(method: str) -> dict[str, Any]:
    """The facts of a method as a JSON-able dict.

    Keys: name, kind, paper, year, placement, adaptive, summary (the first sentence of its docstring), needs, uses,
    budget (how it spreads over layers), budgeted (what an adaptive method does with one), deterministic, exportable,
    checked, restoring, pooling, modes, places (encoder, language), positions, and options (each with its default).
    """
    cls = lookup(method)
    facts = {fact: getattr(cls, fact) for fact in ("name", "kind", "paper", "year", "placement", "adaptive")}
    return facts | {
        "summary": first_sentence(cls.__doc__ or ""),
        "needs": sorted(cls.needs),
        "uses": sorted(cls.uses | cls.between),
        "budget": SHAPES[cls.shape].summary,
        "budgeted": cls.budgeted,
        "deterministic": cls.deterministic,
        "exportable": cls.exportable,
        "checked": cls.checked,
        "restoring": cls.restoring,
        "pooling": cls.pooling,
        "modes": list(cls.modes),
        "places": sorted(cls.places),
        "positions": cls.positions,
        "options": {f.name: f.default for f in dataclasses.fields(cls)},
    }


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split()).split(". ")[0].removesuffix(".") + "."


def _load_builtin() -> None:
    """Import every file of the methods' package; each registers its class."""
    for module in pkgutil.iter_modules(importlib.import_module(METHODS).__path__):
        importlib.import_module(f"{METHODS}.{module.name}")
