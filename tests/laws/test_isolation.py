"""Law 3: forwards do not leak into each other: failed ones, those of other threads, other models or other calls."""

from __future__ import annotations

import threading

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from choosing import MAIN, one_of_each_kind, pairs

import tokenreduce
from tokenreduce import patch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class DeliberateError(ArithmeticError):
    pass


def fail(module, args):
    raise DeliberateError


@pairs(everywhere=("tome", "ward"), main=tokenreduce.methods("encoder"))
def test_forwards_do_not_leak_into_each_other(backbone: Backbone, method: str) -> None:
    x, y = backbone.inputs(), backbone.inputs(3, seed=1)
    with checks.shared(backbone) as model:
        patch(model, method, ratio=0.5)
        expected, other = (checks.everything(model, backbone, inputs) for inputs in (x, y))
        for read in (backbone.outputs, backbone.collect):
            handle = model.get_submodule(backbone.last).register_forward_pre_hook(fail)
            if read is not None:
                with pytest.raises(DeliberateError):
                    read(model, x)
            handle.remove()
            assert checks.same(checks.everything(model, backbone, x), expected)
        assert checks.same(checks.everything(model, backbone, y), other)


@pairs(first=("tome", "ward"), main=one_of_each_kind())
def test_threads_do_not_disturb_each_other(backbone: Backbone, method: str) -> None:
    inputs = [backbone.inputs(1 + seed, seed) for seed in range(3)]
    with checks.shared(backbone) as model:
        patch(model, method, ratio=0.5)
        expected = [checks.everything(model, backbone, x) for x in inputs]
        wrong: list[int] = []

        def work(i: int) -> None:
            wrong.extend(
                i for _ in range(3) if not checks.same(checks.everything(model, backbone, inputs[i]), expected[i])
            )

        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 2, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_forward_that_stops_early_leaves_nothing_behind() -> None:
    x, y = MAIN.inputs(), MAIN.images(3, seed=1)
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    expected = checks.everything(model, MAIN, x)
    with torch.no_grad():
        model.forward_intermediates(y, indices=[1], stop_early=True)
    assert checks.same(checks.everything(model, MAIN, x), expected)


def test_two_reduced_models_stepped_block_by_block() -> None:
    x = MAIN.images()
    models = [patch(fresh_model(MAIN), method, ratio=0.5) for method in ("tome", "evit")]
    expected = [m.forward_intermediates(x, intermediates_only=True)[-1] for m in models]
    states = [m.norm_pre(m._pos_embed(m.patch_embed(x))) for m in models]
    for pair in zip(*(m.blocks for m in models), strict=True):
        states = [block(state) for block, state in zip(pair, states, strict=True)]
    for state, maps in zip(states, expected, strict=True):
        assert torch.equal(state[:, 1:].transpose(1, 2).reshape(maps.shape), maps)


def test_a_slice_of_the_blocks_runs_in_order_or_not_at_all() -> None:
    model, x = patch(fresh_model(MAIN), "tome", ratio=0.5), torch.randn(2, 65, 32)
    first = model.blocks[:2](x)
    with pytest.raises(ValueError, match="outside a forward pass"):
        model.blocks[2:](first)


def test_two_reduced_models_interleaved() -> None:
    other = BY_NAME["timm_vit"]
    x, y = MAIN.images(), other.images(seed=1)
    first, second = patch(fresh_model(MAIN), "tome", ratio=0.5), patch(fresh_model(other), "evit", ratio=0.5)
    expected = second(y)
    seen = []
    first.blocks[1].register_forward_pre_hook(lambda m, a: seen.append(second(y)))
    plain = patch(fresh_model(MAIN), "tome", ratio=0.5)(x)
    assert torch.equal(first(x), plain)
    assert torch.equal(seen[0], expected)
