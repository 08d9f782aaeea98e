"""Law: a patched model leaves as much in memory as an unpatched one, whatever way its forwards end."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from changing import layers_of
from choosing import MAIN, SAMPLE, pairs
from torch import Tensor, nn

from tokenreduce import patch, unpatch
from tokenreduce.forward import stack


class DeliberateError(ArithmeticError):
    pass


def stop(module: nn.Module, args: Any) -> None:
    raise DeliberateError


def inside(module: nn.Module) -> nn.Module:
    """The last module inside a layer that is called: what stops there has shown its attention."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("where", ["between", "inside"])
@pairs(first=("tome",), main=SAMPLE)
def test_deleted_models_are_gone_after_forwards_that_stopped(
    backbone: Backbone, method: str, where: str, grad: bool
) -> None:
    def once() -> weakref.ref[Tensor]:
        model = patch(fresh_model(backbone), method, ratio=0.5)
        layer = layers_of(model)[-1]
        (layer if where == "between" else inside(layer)).register_forward_pre_hook(stop)
        with torch.set_grad_enabled(grad), pytest.raises(DeliberateError):
            backbone.outputs(model, backbone.inputs())
        return weakref.ref(next(model.parameters()))

    held = [once() for _ in range(3)]
    gc.collect()
    assert [weight() is not None for weight in held] == [False] * 3


def test_unpatching_drops_the_runs_of_all_threads() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    x = model.norm_pre(model._pos_embed(model.patch_embed(MAIN.images())))
    done, end = threading.Event(), threading.Event()

    def work() -> None:
        model.blocks[1](model.blocks[0](x))
        done.set()
        end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    done.wait(60)
    model.blocks[0](x)
    own = model._tokenreduce.reduction
    held = [weakref.ref(run) for runs in stack._stacks.values() for run in runs if run.reduction is own]
    assert len(held) == 2
    unpatch(model)
    gc.collect()
    assert [run() for run in held] == [None, None]
    end.set()
    thread.join()


def kinds(model: Any, x: Tensor) -> list[Callable[[], object]]:
    """Forwards of mixed kinds, some of which stop early or fail."""

    def own_loop() -> None:
        z = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for block in model.blocks[:2]:
            z = block(z)

    def blocks_alone() -> None:
        z = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for block in [*model.blocks][:3]:
            z = block(z)

    def fails() -> None:
        handle = model.blocks[2].mlp.register_forward_pre_hook(stop)
        with pytest.raises(DeliberateError):
            model(x)
        handle.remove()

    def refused() -> None:
        with pytest.raises(ValueError, match=r"outside a forward pass|right after block"):
            model.blocks[3](x.new_zeros(2, 65, 32))

    def patched_again() -> None:
        patch(model, "tome", ratio=0.5)

    def elsewhere() -> None:
        thread = threading.Thread(target=blocks_alone)
        thread.start()
        thread.join()

    def without_gradient() -> None:
        with torch.no_grad():
            model(x)

    def backward() -> None:
        model(x).sum().backward()
        model.zero_grad()

    def embedded() -> None:
        model.patch_embed(x)

    return [
        lambda: model(x),
        without_gradient,
        backward,
        lambda: model.forward_intermediates(x, indices=[1], stop_early=True),
        lambda: model.forward_features(x),
        own_loop,
        blocks_alone,
        fails,
        refused,
        patched_again,
        elsewhere,
        embedded,
    ]


def test_a_thousand_forwards_of_mixed_kinds_leave_nothing() -> None:
    model = patch(fresh_model(BY_NAME["timm_vit"]), "tome", ratio=0.5)
    calls = kinds(model, MAIN.images())

    def run(times: int) -> tuple[int, int]:
        for index in range(times):
            calls[index % len(calls)]()
        gc.collect()
        # Not those of subclasses: fake ones that other tests have left have no bytes.
        tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
        return sum(tensor.nbytes for tensor in tensors), sys.getallocatedblocks()

    run(20 * len(calls))
    held, blocks = run(len(calls))
    later, more = run(84 * len(calls))
    assert later == held
    assert more - blocks < 500, "of more than a thousand forwards, each of which makes thousands"
