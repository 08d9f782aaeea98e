"""A tiny model, and a clock that it moves: every layer takes a known time for each token, every reducer for its steps.

Hooks stay on copies of the model, so that all lanes of `compare` take known times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenreduce import Reducer, TokenMap
from tokenreduce.lab.speed import timing
from tokenreduce.reducers import registry
from tokenreduce.reducers.contract import FastPath

ATTENTION, MLP = 1, 2  # milliseconds a token
BEGIN, PLAN, APPLY, FUSED = 1, 4, 2, 5  # milliseconds


class Clock:
    """Seconds that only `work` moves; `pace` is how slow the machine is at the moment."""

    def __init__(self) -> None:
        self.now, self.pace = 0.0, 1.0

    def work(self, milliseconds: float) -> None:
        self.now += 1e-3 * self.pace * milliseconds


CLOCK = Clock()


def tiny_vit(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(**(shape | changes)).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timed_vit() -> nn.Module:
    """A tiny model whose attention and MLP move the clock by how many tokens they get."""
    model = tiny_vit()
    for block in model.blocks:
        block.attn.proj.register_forward_pre_hook(lambda _, args: CLOCK.work(ATTENTION * args[0].shape[1]))
        block.mlp.fc1.register_forward_pre_hook(lambda _, args: CLOCK.work(MLP * args[0].shape[1]))
    return model


class TimedMap(TokenMap):
    def apply(self, *arguments: Any) -> Tensor:
        CLOCK.work(APPLY)
        return super().apply(*arguments)


def last_token_takes_the_rest(count: int, keep: int, batch: int) -> dict[str, Any]:
    at = torch.arange(count).expand(batch, -1)
    return {"count": keep, "dest": at.clamp(max=keep - 1), "rep": at[:, :keep]}


class TimedReducer(Reducer):
    """What all timed methods share; they differ in where they reduce and by what path."""

    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026

    def begin(self, tokens: Any) -> str:
        CLOCK.work(BEGIN)
        return "state"

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        """Merge the last tokens into one."""
        assert state == "state"
        CLOCK.work(PLAN)
        return TimedMap(**last_token_takes_the_rest(tokens.count, keep, len(tokens.features)))


@dataclass(frozen=True)
class TimedMid(TimedReducer):
    """Between attention and MLP."""

    name: ClassVar[str] = "timed_mid"


@dataclass(frozen=True)
class TimedPre(TimedReducer):
    """Before the block."""

    name: ClassVar[str] = "timed_pre"
    placement: ClassVar[str] = "pre"


@dataclass(frozen=True)
class TimedPost(TimedReducer):
    """After the block; drops, so that runs take the other way of applying."""

    name: ClassVar[str] = "timed_post"
    placement: ClassVar[str] = "post"

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        CLOCK.work(PLAN)
        return TimedMap(**last_token_takes_the_rest(tokens.count, keep, len(tokens.features)), drops=True)


def merge_at_once(
    reducer: Any, kernel: Any, x: Tensor, keys: Tensor, sizes: Tensor | None, keep: int, prefix: int, suffix: int
) -> tuple[Any, ...]:
    assert kernel == "timed kernel"
    CLOCK.work(FUSED)
    token_map = TokenMap(**last_token_takes_the_rest(x.shape[1] - prefix - suffix, keep, len(x)))
    return token_map, *token_map.merge(x, sizes, prefix, suffix)


@dataclass(frozen=True)
class TimedFused(TimedReducer):
    """By a kernel that plans and applies in one call, where there is one."""

    name: ClassVar[str] = "timed_fused"
    needs: ClassVar[frozenset[str]] = frozenset({"mean_keys"})
    fast_path: ClassVar[FastPath] = FastPath(kernel="timed", merge=merge_at_once)

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        return super().plan(tokens, keep, state)


@dataclass(frozen=True)
class TimedAdaptive(TimedReducer):
    """Decides by itself that every layer loses three tokens."""

    name: ClassVar[str] = "timed_adaptive"
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "keeps what it says"

    def decide(self, tokens: Any, state: Any = None) -> int:
        CLOCK.work(PLAN)
        return tokens.count - 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The clock that timing reads for this test, and the timed methods registered."""
    CLOCK.now, CLOCK.pace = 0.0, 1.0
    registry.methods()
    known = dict(registry._registry)
    for method in (TimedMid, TimedPre, TimedPost, TimedFused, TimedAdaptive):
        registry.register(method)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    yield CLOCK
    registry._registry.clear()
    registry._registry.update(known)
