"""Methods that users register, what `describe` says of each, and the functional layer's refusals."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from choosing import MAIN
from timms import small_vit

import tokenreduce
from tokenreduce import TokenMap, patch, report
from tokenreduce.reducers.registry import ARGUMENTS


def test_functional_layer_errors() -> None:
    x = torch.randn(2, 8, 4)
    for arguments, message in [
        ({"keep": 3}, "tome can leave 4 to 8 of 8 tokens, not 3"),
        ({"keep": 5, "keys": torch.randn(2, 7, 4)}, r"keys has shape \(2, 1, 7, 4\)"),
        ({"keep": 5, "sizes": torch.ones(2, 7)}, "sizes has shape"),
        ({"ratio": 1.0}, "ratio is 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenreduce.plan(x, "tome", **arguments)
    with pytest.raises(ValueError, match="evit needs class_attention; pass it to plan"):
        tokenreduce.plan(x, "evit", keep=4)
    with pytest.raises(TypeError, match="exactly one of keep"):
        tokenreduce.plan(x, "tome")
    token_map = tokenreduce.plan(x, "tome", ratio=0.5)
    with pytest.raises(ValueError, match=r"the map takes \(B, 8, C\)"):
        tokenreduce.apply(token_map, x[:, :5])
    with pytest.raises(ValueError, match=r"the map leaves \(B, 4, C\)"):
        tokenreduce.restore(token_map, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": "0.5"}, "ratio is '0.5'; it must be a number"),
        ({"ratio": True}, "ratio is True"),
        ({"keep": 5, "grid": 8}, "grid is 8"),
        ({"keep": 5, "grid": (8,)}, r"grid is \(8,\)"),
        ({"keep": 5, "grid": (2.0, 4.0)}, r"side of the grid is 2\.0"),
        ({"keep": 5, "grid": (-2, -4)}, "side of the grid is -2; it must be 1 or more"),
        ({"keep": 5, "grid": (2, 3)}, r"grid is \(2, 3\), which has fewer places than the 8 tokens of x"),
        ({"keep": 5, "prefix": -1}, "prefix is -1; it must be 0 or more"),
        ({"keep": 5, "prefix": "a"}, "prefix is 'a'"),
        ({"keep": 5, "layer": -1}, "layer is -1"),
        ({"keep": 5, "depth": 0}, "depth is 0; it must be 1 or more"),
        ({"keep": 5, "sizes": [1] * 8}, r"sizes is \[1, .*; it must be a tensor"),
        ({"keep": 5, "x": torch.ones(2, 8, 4, dtype=torch.long)}, r"x holds torch\.int64"),
        ({"keep": 5, "x": torch.ones(8, 4)}, r"x has shape \(8, 4\)"),
        ({"keep": 5, "x": None}, "x is a NoneType"),
    ],
)
def test_what_plan_cannot_read_is_refused(arguments, message) -> None:
    with pytest.raises(tokenreduce.TokenReduceError, match=message):
        tokenreduce.plan(**{"x": torch.randn(2, 8, 4), "method": "pool", **arguments})


def test_a_grid_may_be_a_list() -> None:
    x = torch.randn(2, 8, 4)
    as_list, as_tuple = (tokenreduce.plan(x, "pool", keep=4, grid=grid) for grid in ([2, 4], (2, 4)))
    assert torch.equal(as_list.dest, as_tuple.dest)


@pytest.mark.parametrize("method", ["tome", "random", "expedit"])
def test_maps_take_tokens_of_their_own_batch_only(method) -> None:
    x = torch.randn(2, 8, 4)
    token_map = tokenreduce.plan(x, method, keep=5, grid=(2, 4))
    y, _ = tokenreduce.apply(token_map, x)
    for batch in (1, 3):
        with pytest.raises(ValueError, match=r"the map takes \(B, 8, C\) with B = 2"):
            tokenreduce.apply(token_map, torch.randn(batch, 8, 4))
        with pytest.raises(ValueError, match=r"the map leaves \(B, 5, C\) with B = 2"):
            tokenreduce.restore(token_map, torch.randn(batch, 5, 4))
        with pytest.raises(ValueError, match=r"sizes has shape .*; it must be \(B, N\) = \(2, 8\)"):
            tokenreduce.apply(token_map, x, torch.ones(batch, 8))
    with pytest.raises(TypeError, match=r"x holds torch\.int64"):
        tokenreduce.apply(token_map, torch.ones(2, 8, 4, dtype=torch.long))
    labels = torch.arange(10).reshape(2, 5, 1)
    assert torch.equal(tokenreduce.restore(token_map, labels), tokenreduce.restore(token_map, labels.double()).long())
    with pytest.raises(TypeError, match="y is a NoneType"):
        tokenreduce.restore(token_map, None)
    with pytest.raises(TypeError, match="token_map is 3; it must be a TokenMap"):
        tokenreduce.apply(3, x)
    with pytest.raises(TypeError, match="token_map is None"):
        tokenreduce.restore(None, y)


def test_a_new_method_is_one_class() -> None:
    from tokenreduce.reducers import registry

    @tokenreduce.register
    @dataclass(frozen=True)
    class First(tokenreduce.Reducer):
        """Keep the first tokens."""

        name: ClassVar[str] = "first"
        kind: ClassVar[str] = "pruning"
        paper: ClassVar[str] = "none"
        year: ClassVar[int] = 2026

        def plan(self, tokens, keep, state=None):
            index = torch.arange(tokens.count).expand(tokens.features.shape[0], -1)
            return TokenMap(keep, dest=index.clamp_max(keep - 1), rep=index[:, :keep], drops=True)

    try:
        model = patch(small_vit(), "first", flops=0.7)
        model(MAIN.images())
        assert report(model).tokens_left < 64 and tokenreduce.describe("first")["summary"] == "Keep the first tokens."
        assert tokenreduce.describe("first")["checked"] == tokenreduce.describe("first")["exportable"] == "unknown"
        with pytest.raises(ValueError, match="'tome' is taken"):
            tokenreduce.register(dataclass(frozen=True)(type("Tome2", (First,), {"name": "tome"})))
        with pytest.raises(ValueError, match="lacks the class attribute 'kind'"):
            tokenreduce.register(type("Nameless", (tokenreduce.Reducer,), {"name": "nameless"}))
        with pytest.raises(TypeError, match="must be a frozen dataclass"):
            tokenreduce.register(type("Bare", (First,), {"name": "bare"}))
        named = {"__annotations__": {"grid": int}, "grid": 4, "name": "named"}
        with pytest.raises(ValueError, match="Named: grid would be taken for an argument of patch or plan"):
            tokenreduce.register(dataclass(frozen=True)(type("Named", (First,), named)))
        with pytest.raises(TypeError, match=r"derived from tokenreduce\.Reducer"):
            tokenreduce.register(dict)
    finally:
        registry._registry.pop("first")


def test_no_option_can_have_the_name_of_an_argument() -> None:
    """Else the user could not give it: `patch` and `plan` would take it for their own."""
    arguments = {name for verb in (patch, tokenreduce.plan) for name in inspect.signature(verb).parameters}
    assert arguments - {"options", "layer"} <= ARGUMENTS  # fastv has a layer of its own, and none in plan


@pytest.mark.parametrize("method", tokenreduce.methods())
def test_describe_is_complete_and_json(method) -> None:
    facts = tokenreduce.describe(method)
    assert json.loads(json.dumps(facts)) == facts
    assert {"name", "kind", "paper", "year", "needs", "options", "adaptive", "summary"} <= facts.keys()
    assert facts["name"] == method and facts["summary"].endswith(".")
