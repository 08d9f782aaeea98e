"""Methods that users register, what `describe` says of each, and the functional layer's refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from choosing import MAIN
from timms import small_vit

import tokenreduce
from tokenreduce import TokenMap, patch, report


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
        with pytest.raises(TypeError, match=r"derived from tokenreduce\.Reducer"):
            tokenreduce.register(dict)
    finally:
        registry._registry.pop("first")


@pytest.mark.parametrize("method", tokenreduce.methods())
def test_describe_is_complete_and_json(method) -> None:
    facts = tokenreduce.describe(method)
    assert json.loads(json.dumps(facts)) == facts
    assert {"name", "kind", "paper", "year", "needs", "options", "adaptive", "summary"} <= facts.keys()
    assert facts["name"] == method and facts["summary"].endswith(".")
