"""`Reducer`, the contract of a method, and the registry of methods. A method is one file in `reducers/`."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.schedule import SHAPES
from tokenreduce.token_map import TokenMap
from tokenreduce.tokens import PROVIDABLE, Tokens

PLACEMENTS = ("pre", "mid", "post")
_registry: dict[str, type[Reducer]] = {}


@dataclass(frozen=True)
class Reducer:
    """One method: from what a layer shows and a count to keep, to a `TokenMap`. Its fields are the user's options.

    Class attributes are the method's facts: `kind` (merging, pruning, ...), `paper`, `year`, `needs` (names of
    `tokens.PROVIDABLE` without which its defaults cannot run), `uses` (names it takes where the model has them),
    `averages_keys` (reads `tokens.keys_to_average`), `kernel` (the compiled one that plans and applies in one call: has
    `merge_at_once`), `placement` ("pre" the block, "mid" between attention and MLP,
    "post"), `shape` (how a budget spreads over layers, see `Schedule`), `once` (can reduce in one layer only),
    `adaptive` (can decide counts itself: has `decide`), `budgeted` (what an adaptive method does with a budget, in one
    line), `exportable` (compiles and exports whole with a budget, to ONNX too), `checked` (what its results were
    compared with), `restoring` (how tokens come back in maps unless the user says otherwise), `pooling` (how they do so
    for a head that pools them), `modes` (the ways of `restoring.MODES` that its maps allow).
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()
    placement: ClassVar[str] = "mid"
    averages_keys: ClassVar[bool] = False
    kernel: ClassVar[str] = ""
    shape: ClassVar[str] = "constant"
    adaptive: ClassVar[bool] = False
    once: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification"
    budgeted: ClassVar[str] = ""
    restoring: ClassVar[str] = "delta"
    pooling: ClassVar[str] = "copy"
    modes: ClassVar[tuple[str, ...]] = ("copy", "freeze", "delta")

    def __init_subclass__(cls) -> None:
        if "plan" in vars(cls) and "kernel" not in vars(cls):
            cls.kernel = ""  # a kernel does what the plan beside it does, not another one

    def least(self, n: int) -> int:
        """The fewest tokens this method can leave of `n` in one layer."""
        return 1

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        """`least`, of the tokens of an input of this grid."""
        return self.least(n)

    def rebuilt_after(self) -> tuple[int, ...]:
        """The layers after which these options have all tokens restored."""
        return ()

    def required(self) -> frozenset[str]:
        """What these options need of the model; most methods need the same with all options."""
        return self.needs

    def begin(self, tokens: Tokens) -> Any:
        """State for one forward, made of the tokens that enter the first block (features and grid only)."""
        return None

    def deciding_layers(self, depth: int) -> tuple[int, ...]:
        """The layers in which an adaptive method without a budget reduces."""
        return tuple(range(depth))

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        """How many of `tokens` an adaptive method without a budget keeps here: one count for the batch."""
        raise NotImplementedError  # every adaptive method overrides it; `register` checks

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        """The map that leaves `keep` of `tokens`; runs without gradient and outside autocast."""
        raise NotImplementedError  # every registered method overrides it; `register` checks

    def merge_at_once(
        self, kernel: Any, x: Tensor, keys: Tensor, sizes: Tensor | None, keep: int, prefix: int, suffix: int
    ) -> tuple[TokenMap, Tensor, Tensor, Tensor]:
        """`plan` and `TokenMap.merge` of it by the compiled `kernel`: the map, and merged tokens, sizes and bias.

        `x (B, prefix + N + suffix, C)` and `keys (B, H, prefix + N + suffix, d)` hold all tokens, `sizes (B, N)`.
        """
        raise NotImplementedError  # every method with a kernel has it

    def options(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return dataclasses.asdict(self)


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
    if cls.shape not in SHAPES:
        raise unknown(f"shape of {cls.__name__}", cls.shape, SHAPES)
    if cls.plan is Reducer.plan:
        raise InvalidValueError(f"{cls.__name__} has no plan(tokens, keep, state) method")
    if cls.placement not in PLACEMENTS or not cls.needs | cls.uses <= PROVIDABLE.keys():
        raise InvalidValueError(
            f"{cls.__name__}: placement {cls.placement!r} must be one of {PLACEMENTS} "
            f"and needs and uses {sorted(cls.needs | cls.uses)} among {sorted(PROVIDABLE)}"
        )
    if not cls.adaptive == (cls.decide is not Reducer.decide) == bool(cls.budgeted):
        raise InvalidValueError(f"{cls.__name__}: an adaptive method, and no other, has decide(...) and `budgeted`")
    if not cls.__module__.startswith("tokenreduce.reducers."):
        _load_builtin()
    taken = _registry.get(cls.name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InvalidValueError(
            f"method {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another name"
        )
    _registry[cls.name] = cls
    return cls


def methods() -> list[str]:
    """Names of all registered methods."""
    _load_builtin()
    return sorted(_registry)


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
    """The facts of a method as a JSON-able dict: name, kind, paper, year, summary, needs, placement, options,
    defaults."""
    cls = lookup(method)
    facts = {fact: getattr(cls, fact) for fact in ("name", "kind", "paper", "year", "placement", "adaptive")}
    return facts | {
        "summary": first_sentence(cls.__doc__ or ""),
        "needs": sorted(cls.needs),
        "uses": sorted(cls.uses),
        "budget": SHAPES[cls.shape].summary,
        "budgeted": cls.budgeted,
        "deterministic": cls.deterministic,
        "exportable": cls.exportable,
        "checked": cls.checked,
        "restoring": cls.restoring,
        "pooling": cls.pooling,
        "modes": list(cls.modes),
        "options": {f.name: f.default for f in dataclasses.fields(cls)},
    }


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join(text.strip().split("\n\n")[0].split()).split(". ")[0].removesuffix(".") + "."


def check_option(name: str, value: object, valid: tuple[object, ...] | type) -> None:
    """Raise unless `value` is one of the values `valid`, or an instance of the type `valid`."""
    if isinstance(valid, tuple):
        if value not in valid:
            raise InvalidValueError(f"option {name} is {value!r}; valid: {', '.join(map(repr, valid))}")
    elif not isinstance(value, valid) or (valid is int and isinstance(value, bool)):
        raise InvalidTypeError(f"option {name} is {value!r}; it must be of type {valid.__name__}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raise unless the option `name` has a number between `low` and `high` as its `value`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(f"option {name} is {value!r}; it must be a number")
    if not low <= value <= high or math.isinf(value):
        valid = f"lie in [{low}, {high}]" if math.isfinite(high) else f"be finite and at least {low}"
        raise InvalidValueError(f"option {name} is {value!r}; it must {valid}")


def _load_builtin() -> None:
    from tokenreduce import reducers

    for module in pkgutil.iter_modules(reducers.__path__):
        importlib.import_module(f"{reducers.__name__}.{module.name}")
