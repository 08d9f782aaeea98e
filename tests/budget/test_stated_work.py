"""What methods say that their work costs is what dispatch counts, and a budget that asks them rehearses nothing."""

from __future__ import annotations

import dataclasses
import math
import re
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

import tokenreduce
from tokenreduce import Reducer, Schedule, TokenMap
from tokenreduce.budget import rehearsal
from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.budget.rehearsal import MANY, Rehearsal
from tokenreduce.forward.reduction import Reduction
from tokenreduce.maps.restoring import Restoring
from tokenreduce.ops.rows import counting
from tokenreduce.reducers.registry import create, lookup

METHODS = tokenreduce.methods()
every_method = pytest.mark.parametrize("method", METHODS)
WIDTH, HEADS, HEAD_DIM = 24, 3, 7  # a head's channels that are no part of the width show which of both is meant


class Heads(nn.Module):
    """Auxiliary heads whose logits of a token follow from it alone or, `together`, from all of them."""

    auxiliary_layers = tuple(range(24))

    def __init__(self, width: int, together: bool = False) -> None:
        super().__init__()
        self.linear, self.together = nn.Linear(width, 5), together

    def auxiliary_logits(self, layer: int, tokens: Tensor) -> Tensor:
        if self.together:
            tokens = (tokens @ tokens.mT) @ tokens
        return self.linear(tokens)[:, :, None]


def values_of(method: str, option: str, default: Any) -> list[Any]:
    """Values that the option may have: those that an error names, or of some numbers those that raise none."""
    tried: list[Any] = [True, False] if isinstance(default, bool) else [None, 0, 0.25, 1, 1.0, 2, 3, 0.9]
    if isinstance(default, str):
        with pytest.raises((ValueError, TypeError)) as error:
            create(method, {option: "no such value"})
        tried = re.findall(r"'(\w+)'", str(error.value).partition("valid:")[2])
    valid = [default]
    for value in tried:
        try:
            create(method, {option: value})
        except (ValueError, TypeError):
            continue
        valid.append(value)
    assert len(valid) > 1, f"no other value of {method}({option}={default!r}) is known"
    return valid


CHOICES = {m: {o: values_of(m, o, v) for o, v in tokenreduce.describe(m)["options"].items()} for m in METHODS}


def unstated(reducer: Reducer) -> Reducer:
    """The same method by a class that says nothing of its work, which is counted then."""
    assert reducer.states_work
    twin = type(reducer.__class__.__name__, (type(reducer),), {})(**reducer.options())
    assert not twin.states_work
    return twin


def some_geometry(reducer: Reducer, rng: Random) -> Geometry:
    video = "frames" in reducer.needs
    grid = rng.choice([(4, 3, 2), (5, 2, 3), (3, 4, 3)] if video else [(6, 6), (5, 7), (1, 9), (3, 8), (7, 2)])
    class_tokens = rng.randint("class_attention" in reducer.required(), 2)
    prefix, suffix = class_tokens + rng.choice([0, 1, 4]), rng.choice([0, 3])
    costs = Costs(0, 0, (0,) * 12, (0,) * 12, (0,) * 12)
    return Geometry(12, prefix, suffix, class_tokens, grid, WIDTH, HEADS, HEAD_DIM, costs)


@every_method
def test_stated_work_is_what_dispatch_counts(method) -> None:
    """For all options, layers, numbers of tokens, grids, protected tokens and ways of coming back."""
    rng = Random(0)
    for _ in range(60):
        reducer = create(method, {name: rng.choice(values) for name, values in CHOICES[method].items()})
        shape = some_geometry(reducer, rng)
        whole = reducer.once or "frames" in reducer.needs or rng.random() < 0.5
        n = shape.count if whole else rng.randint(2, shape.count)
        keep = rng.randint(min(reducer.least_of(n, shape.grid), n - 1), n - 1)
        layer, mode = rng.randrange(12), rng.choice([None, *reducer.modes])
        heads = Heads(WIDTH) if "auxiliary_logits" in reducer.required() else None
        said, counted = (Rehearsal(r, shape, shape.count, {}, mode, heads) for r in (reducer, unstated(reducer)))
        assert said.plan(layer, n, keep) == counted.plan(layer, n, keep), (reducer, shape, n, keep, layer, mode)
        assert said.begin() == counted.begin()


def test_all_options_are_tried() -> None:
    assert len(CHOICES["token_transforming"]) == 9 and len(CHOICES["token_transforming"]["score"]) == 7
    assert set(CHOICES["ward"]["rounds"]) >= {1, 2, 3} and set(CHOICES["pitome"]["mode"]) == {"protect", "deit", "mae"}


def large(method: str, class_tokens: int = 1) -> Geometry:
    """DINOv2-L at 518 pixels, or VideoMAE-L."""
    video = "frames" in lookup(method).needs
    width, depth = 1024, 24
    layer = [4 * width**2], [2 * width], [8 * width**2]
    costs = Costs(1_024_000, 600_000, *(tuple(part * depth) for part in layer))
    return Geometry(depth, 1, 0, class_tokens, (8, 14, 14) if video else (37, 37), width, 16, 64, costs)


def budget(reducer: Reducer, shape: Geometry, flops: float = 0.7, layers: tuple[int, ...] | None = None) -> Reduction:
    schedule = Schedule.budget(reducer.shape, flops=flops, layers=layers)
    restoring = Restoring(reducer.restoring, reducer.restoring, ends=True, taps=True, charged=True)
    heads = Heads(shape.width) if "auxiliary_logits" in reducer.required() else None
    owner = SimpleNamespace(heads=heads, backbone=None)
    return Reduction(reducer, schedule, shape, "by hand", restoring, True, {}, owner)


@pytest.fixture
def counted(monkeypatch) -> list[Any]:
    """What is counted by dispatch."""
    seen: list[Any] = []
    count = rehearsal.count_flops
    monkeypatch.setattr(rehearsal, "count_flops", lambda work, input: seen.append(work) or count(work, input))
    return seen


@every_method
def test_a_budget_of_a_large_model_rehearses_nothing_and_asks_a_few_dozen_times(method, counted, monkeypatch) -> None:
    """A rehearsal on so many tokens takes up to a second. Without `work` beside its `plan` a method fails here."""
    patch = budget(create(method, {}), large(method))
    asked: list[Any] = []
    share = Reduction.share
    monkeypatch.setattr(Reduction, "share", lambda self, *args: asked.append(args) or share(self, *args))
    counts = patch.counts(patch.geometry.count)
    assert min(counts) < patch.geometry.count
    assert len(asked) <= 36
    assert patch.share(patch.geometry.count, counts) == pytest.approx(0.7, abs=0.05)
    assert len(counted) <= (0 if patch.heads is None else 2 * 24), "of auxiliary heads two sizes in each layer"


def test_counting_a_rehearsal_is_seen(counted) -> None:
    patch = budget(unstated(create("tome", {})), large("tome"), layers=(3,), flops=0.9)
    patch.counts(1369)
    assert len(counted) > 5


def test_a_class_that_states_nothing_gets_the_same_counts() -> None:
    shape = dataclasses.replace(large("tome"), grid=(8, 9), width=64, heads=4, head_dim=16)
    for method in ("gtp", "ward"):
        reducer, layers = create(method, {}), (3, 11, 17)
        own, twin = (budget(r, shape, layers=layers).counts(72) for r in (reducer, unstated(reducer)))
        assert own == twin and min(own) < 60


class Changed(lookup("topk")):
    """Scores cost something else here than in the class that states the work."""

    def _scores(self, tokens: Any) -> Tensor:
        x = tokens.features
        return (x @ x.mT).sum(-1)


def test_what_a_subclass_changes_is_counted() -> None:
    shape = dataclasses.replace(large("topk"), grid=(5, 5))
    own, changed = (Rehearsal(r, shape, 25, {}, None).plan(3, 20, 10) for r in (create("topk", {}), Changed()))
    nearest = 20 * 10 * 64
    assert own == 16 * 21 * 64 + nearest and changed == 20 * 20 * 1024 + nearest


class Squaring(Reducer):
    """Keeps the first tokens, after a product a round: as many as `rounds` says for so many tokens."""

    needs = frozenset()
    looks = False

    def begin(self, tokens: Any) -> Tensor:
        return tokens.features @ tokens.features.mT

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        x = tokens.features
        assert state.device == x.device
        for _ in range(1 + tokens.count % 3):
            x = (x @ x.mT) @ x
        if self.looks and float(x.sum()) == math.inf:
            raise AssertionError("random tokens are finite")
        index = counting(keep, x.device)[None]
        return TokenMap(keep, dest=counting(tokens.count, x.device)[None].clamp_max(keep - 1), rep=index)


class Looking(Squaring):
    looks = True


@pytest.mark.parametrize("entered", [MANY - 12, MANY + 88])
@pytest.mark.parametrize("reducer", [Squaring(), Looking()], ids=["shapes", "data"])
def test_rehearsals_use_tensors_without_data_where_they_can(reducer, entered) -> None:
    shape = dataclasses.replace(large("tome"), grid=(entered // 10, 10), width=8, heads=1, head_dim=4)
    rehearsed = Rehearsal(reducer, shape, entered, {}, None)
    for n in (60, 61, 62):
        assert rehearsed.plan(2, n, n - 9) == (1 + n % 3) * 2 * n * n * 8
    assert rehearsed.begin() == entered**2 * 8
    assert rehearsed._device == ("meta" if entered > MANY and not reducer.looks else "cpu")


class Broken(Squaring):
    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        raise tokenreduce.InvalidValueError("there is no such map")


@pytest.mark.parametrize("entered", [MANY - 12, MANY + 88])
def test_what_a_method_raises_comes_through(entered) -> None:
    shape = dataclasses.replace(large("tome"), grid=(entered // 10, 10), width=8)
    with pytest.raises(tokenreduce.InvalidValueError, match="there is no such map"):
        Rehearsal(Broken(), shape, entered, {}, None).plan(2, 60, 30)


@pytest.mark.parametrize("together", [False, True])
def test_auxiliary_heads_cost_what_they_do(together, counted) -> None:
    """Two sizes say what all others cost only where tokens are looked at one by one."""
    shape = dataclasses.replace(large("dtop"), grid=(5, 5), width=8)
    reducer = create("dtop", {})
    said = Rehearsal(reducer, shape, 25, {}, None, Heads(8, together))
    truth = Rehearsal(unstated(reducer), shape, 25, {}, None, Heads(8, together))
    for n in (25, 20, 13, 12):
        assert said.plan(3, n, n - 4) == truth.plan(3, n, n - 4)
    assert len([key for key in said.known if key[0] == "auxiliary"]) == (5 if together else 2)


def test_heads_may_be_without_data() -> None:
    shape = dataclasses.replace(large("dtop"), width=8)
    reducer = create("dtop", {})
    here, meta = (Rehearsal(reducer, shape, 1369, {}, None, Heads(8).to(device)) for device in ("cpu", "meta"))
    assert here.plan(3, 1000, 900) == meta.plan(3, 1000, 900) == 1000 * 8 * 5 + 1000 * 900 * 8
