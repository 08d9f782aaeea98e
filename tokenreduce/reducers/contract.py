"""`Reducer`, the contract of a method: its facts, its options, and how it makes a map of what a layer shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

PLACEMENTS = ("pre", "mid", "post")
ENCODER = frozenset({"encoder"})
EVERYWHERE = frozenset({"encoder", "language"})
POSITIONS = ("keep", "renumber")
UNKNOWN = "unknown"  # what `describe` says of a fact that a method does not state


class Shape(NamedTuple):
    """How a budget spreads over the layers: by `count`, by keep `ratio` or by the square `root` of the count, in which
    layers."""

    by: str
    parts: tuple[int, ...]  # twelfths of the depth; empty: every layer from `start` on
    summary: str
    start: int = 0  # twelfths of the depth
    spared: int = 0  # layers at the front in which nothing is spent, whatever the depth
    left: float = 0.0  # share of the tokens: the start comes earlier before a budget in MACs leaves fewer


SHAPES = {
    "constant": Shape("count", (), "the same count from every block"),
    "after_first": Shape("count", (), "the same count from every block but the first", spared=1),
    "delayed": Shape(
        "count", (), "the same count from every block after the first third, or earlier if few are left", 4, left=1 / 6
    ),
    "ratio": Shape("ratio", (), "the same keep ratio in every block"),
    "after_twelfth": Shape("ratio", (), "the same keep ratio in every block after the first twelfth", 1),
    "after_quarter": Shape("ratio", (), "the same keep ratio in every block after the first quarter", 3),
    "deferred": Shape(
        "ratio",
        (),
        "the same keep ratio in every block after the first quarter, or earlier if few are left",
        3,
        left=0.28,
    ),
    "root": Shape("root", (), "the square root of the count falls by the same in every block"),
    "stages": Shape("ratio", (3, 6, 9), "the same keep ratio at 1/4, 1/2 and 3/4 of the depth"),
    "alternate": Shape("ratio", (1, 3, 5, 7, 9), "the same keep ratio at 1/12, 3/12, 5/12, 7/12 and 9/12 of the depth"),
    "once": Shape("ratio", (3,), "everything at 1/4 of the depth"),
    "late": Shape("ratio", (6,), "everything at 1/2 of the depth, or earlier if few are left", left=1 / 3),
    "middle": Shape("ratio", (6,), "everything at 1/2 of the depth"),
    "first": Shape("ratio", (0,), "everything in the first block"),
    "early": Shape("ratio", (0, 2, 4), "the same keep ratio in the first block, at 1/6 and at 1/3 of the depth"),
    "first_and_third": Shape("ratio", (0, 4), "the same keep ratio in the first block and at 1/3 of the depth"),
}


class Ending(NamedTuple):
    """Before `layer` of a language model all tokens of images leave a prompt in which the attention of text to images
    and that of images to text, in the layer before, are both below `threshold`: the means over rows and heads of what
    goes there."""

    layer: int
    threshold: float


@dataclass(frozen=True)
class FastPath:
    """What compiled kernels spare a method. It belongs to the `plan` of the same class.

    Args:
        averages_keys: `plan` reads `tokens.keys_to_average`, of which its kernel makes the mean over heads itself.
        kernel: the name of a kernel that plans and applies in one call, for `choose`; empty if there is none.
        merge: calls it; takes the reducer, the kernel, all tokens `x (B, prefix + N + suffix, C)`, the keys of all
            tokens `(B, H, prefix + N + suffix, d)`, sizes `(B, N)` or None, the count to keep, prefix and suffix;
            returns the map, and merged tokens, sizes and attention bias.
        ahead: plans of keys alone, so that it can run beside attention; takes the reducer, the keys of all tokens, the
            count to keep, prefix and suffix.
    """

    averages_keys: bool = False
    kernel: str = ""
    merge: Callable[..., tuple[TokenMap, Tensor, Tensor, Tensor]] | None = None
    ahead: Callable[[Any, Tensor, int, int, int], TokenMap] | None = None


@dataclass(frozen=True)
class Reducer:
    """One method: from what a layer shows and a count to keep, to a `TokenMap`. Its fields are the user's options.

    Class attributes are the method's facts; the first four and `plan` are needed, the others have defaults:

    name, kind, paper (str), year (int): what it is called, merging or pruning or ..., where it was published.
    needs (frozenset of names, empty): the entries (`reducers.entries`) without which its defaults cannot run.
    uses (frozenset of names, empty): entries that it reads where the model has them.
    between (frozenset of names, empty): the same, but only between the layers of an encoder.
    placement (str, "mid"): reduces "pre" a block, "mid" between attention and MLP, or "post", after the block.
    shape (str, "constant"): how a budget spreads over layers: constant, after_first, delayed, ratio, after_twelfth,
        after_quarter, deferred, root, stages, alternate, once, late, middle, first, early or first_and_third, see
        `SHAPES`.
    scan_shape (str, "early"): the same in state-space models, where every layer costs the same a token and reduces
        after its only line.
    once (bool, False): it can reduce in one layer only.
    adaptive (bool, False): it can decide counts itself; then it has `decide` and says in `budgeted` (str), in one line,
        what it does with a budget.
    deterministic (bool, True): the same input gives the same map.
    exportable (bool or "unknown"): it compiles and exports whole with a budget, to ONNX too.
    checked (str, "unknown"): what its results were compared with.
    restoring (str, "delta"): how tokens come back in maps, unless the user says otherwise: copy, soft, freeze,
        delta or kriging.
    pooling (str, "copy"): how they come back for a head that pools them.
    modes (tuple of str): the ways of coming back that its maps allow.
    places (frozenset, {"encoder"}): it reduces between the layers of an "encoder", before a "language" model, or both.
        There a map has to name one member of each output, whose place in the prompt the output takes.
    positions (str, "keep"): what a language model sees of what was removed, gaps ("keep") or nothing ("renumber").
    former (mapping, empty): options that came later, with what patches that were saved before mean.
    fast_path (FastPath): what compiled kernels spare `plan`. It belongs to the `plan` beside it: a subclass with
        a plan of its own does not inherit it.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()
    between: ClassVar[frozenset[str]] = frozenset()
    placement: ClassVar[str] = "mid"
    shape: ClassVar[str] = "constant"
    scan_shape: ClassVar[str] = "early"
    once: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    budgeted: ClassVar[str] = ""
    deterministic: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = UNKNOWN
    checked: ClassVar[str] = UNKNOWN
    restoring: ClassVar[str] = "delta"
    pooling: ClassVar[str] = "copy"
    modes: ClassVar[tuple[str, ...]] = ("copy", "freeze", "delta", "kriging")
    places: ClassVar[frozenset[str]] = ENCODER
    positions: ClassVar[str] = "keep"
    former: ClassVar[Mapping[str, Any]] = {}
    fast_path: ClassVar[FastPath] = FastPath()

    @property
    def has_state(self) -> bool:
        """Whether the method makes something of the tokens that enter the first block."""
        return type(self).begin is not Reducer.begin

    def fast(self) -> FastPath:
        """The fast path of the class that has the plan."""
        owner = next(cls for cls in type(self).__mro__ if "plan" in vars(cls))
        return vars(owner).get("fast_path", FastPath())

    def plans_ahead(self) -> bool:
        """Whether these options allow `FastPath.ahead`."""
        return self.fast().ahead is not None

    @property
    def states_work(self) -> bool:
        """Whether `work` and `state_work` hold: they belong to the `plan` of the same class, and what a subclass
        changes may cost something else."""
        return {"plan", "work"} <= vars(type(self)).keys()

    def least(self, n: int) -> int:
        """The fewest tokens this method can leave of `n` in one layer."""
        return 1

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        """`least`, of the tokens of an input of this grid."""
        return self.least(n)

    def rebuilt_after(self) -> tuple[int, ...]:
        """The layers after which these options have all tokens restored."""
        return ()

    def language_layers(self, depth: int) -> tuple[int, ...]:
        """The layers of a language model before which a budget alone lets tokens leave; 0: before the first."""
        return (0,)

    def ending(self, depth: int) -> Ending | None:
        """Whether, and where, all tokens of images leave a language model once text does not read them."""
        return None

    def averages_tower(self) -> bool:
        """Whether the attention of a vision tower is wanted as a mean over its layers, up to the one that is taken."""
        return False

    def required(self) -> frozenset[str]:
        """What these options need of the model; most methods need the same with all options."""
        return self.needs

    def read_between(self) -> frozenset[str]:
        """What these options read between the layers of an encoder, where the model has it."""
        return self.required() | self.uses | self.between

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

    def work(self, step: Step) -> int:
        """MACs of `plan`, of the entries that it reads, and of applying and undoing its map, as `count_flops` counts
        them; `auxiliary_logits` aside, whose cost only the model knows.

        A class without it may be registered all the same. A budget then counts them in rehearsals, which take seconds.
        """
        raise NotImplementedError  # asked only where `states_work`

    def state_work(self, step: Step) -> int:
        """MACs of `begin`, of a method that states its `work`; `step` reduces nothing."""
        return 0

    def options(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return dataclasses.asdict(self)
