"""The runs of a thread: models interleaved, layers in order, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from backbones import BY_NAME, fresh_model, shared_model
from patches_by_hand import COUNT, GRID, reduction, tokens
from torch import Tensor

from tokenreduce import InvalidValueError, patch, report, unpatch
from tokenreduce.forward import noted, stack
from tokenreduce.forward.records import last_record
from tokenreduce.forward.slicing import Slicing
from tokenreduce.maps.restoring import Restoring


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list:
    """An empty stack and no notes; other tests may have left some."""
    monkeypatch.setattr(stack, "_thread", stack._Thread())
    monkeypatch.setattr(noted, "_notes", noted._Notes())
    return stack._thread.runs


def layer(patch: Any, index: int, x: Tensor) -> Tensor:
    """What a layer of a model does, which itself adds nothing."""
    run = stack.join(patch, index, x)
    assert run is not None
    x = run.reduce(index, run.enter(index, x), "mid")
    return stack.leave(run, index, x)


def test_layers_reduce_in_order_and_the_last_restores_and_closes(runs) -> None:
    one = reduction()
    x, seen = tokens(), []
    for index in range(4):
        x = layer(one, index, x)
        seen.append((x.shape[1], len(runs)))
    assert seen == [(15, 1), (11, 1), (8, 1), (15, 0)]
    record = last_record(one)
    assert record is not None and record.entered == 12 and record.counts == (12, 8, 5, 5)
    assert [at for at, _ in record.maps] == [1, 2]


def test_what_must_not_come_back_stays_reduced(runs) -> None:
    one = reduction(restoring=Restoring("copy", "copy", ends=False, taps=True, charged=False))
    x = tokens()
    for index in range(4):
        x = layer(one, index, x)
    assert x.shape[1] == 8 and runs == []


def test_models_may_be_interleaved(runs) -> None:
    one, other = reduction(), reduction({0: 6})
    x, y = tokens(0), tokens(1)
    alone = {}
    for patch_, start in ((one, x), (other, y)):
        out = start
        for index in range(4):
            out = layer(patch_, index, out)
        alone[patch_] = out
    for index in range(4):
        x, y = layer(one, index, x), layer(other, index, y)
        assert len(runs) == (0 if index == 3 else 2)
    assert torch.equal(x, alone[one]) and torch.equal(y, alone[other])


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_layers_out_of_order_raise(runs, wrong) -> None:
    one = reduction()
    x = layer(one, 1, layer(one, 0, tokens()))
    if wrong == 0:  # a new forward
        assert layer(one, 0, tokens()).shape[1] == 15 and len(runs) == 1
        return
    said = {1: "block 1 .* called again after block 1", 3: "block 3 .* right after block 1: block 2 did not run"}
    with pytest.raises(InvalidValueError, match=said[wrong]):
        stack.join(one, wrong, tokens())
    assert layer(one, 2, x).shape[1] == 8


def test_another_thread_has_runs_of_its_own() -> None:
    one = reduction()
    x = layer(one, 0, tokens())
    with ThreadPoolExecutor(1) as pool, pytest.raises(InvalidValueError, match="block 0 ran in another thread"):
        pool.submit(stack.join, one, 1, x).result()
    assert layer(one, 1, x).shape[1] == 11


def test_layers_alone_may_run_where_nothing_is_removed(runs) -> None:
    one = reduction({1: 12})  # of more tokens it would remove some
    assert stack.join(one, 2, tokens()) is None and stack.join(one, 0, tokens()) is None
    assert stack.open_run(one, tokens()) is None and runs == []


def test_a_slicing_needs_no_run(runs) -> None:
    slicing = Slicing(reduction().geometry, (8, 8, 5, 5), "mid")
    assert stack.join(slicing, 2, tokens()) is slicing and runs == []
    x = tokens()
    assert stack.leave(slicing, 3, x) is x


def test_a_surrounded_run_is_closed_by_who_opened_it(runs) -> None:
    one, other = reduction(), reduction()
    x = tokens()
    run = stack.open_run(one, x, surrounded=True)
    above = stack.open_run(other, x, surrounded=True)
    assert run is not None and above is not None and runs == [run, above]
    assert stack.join(one, 0, x) is run, "no layer opens another"
    for index in range(4):
        x = layer(one, index, x)
    assert x.shape[1] == 8 and runs == [run, above]
    assert stack.finish(run, x, restore=False) is x
    assert stack.finish(run, x, restore=True).shape[1] == 15
    record = last_record(one)
    assert record is not None and record.counts == (12, 8, 5, 5)
    stack.close(run)
    assert runs == [above]
    stack.close(run)
    assert runs == [above]


def test_a_run_that_nothing_surrounds_is_not_joined_by_the_first_layer_again(runs) -> None:
    one = reduction()
    first = stack.join(one, 0, tokens())
    assert stack.join(one, 0, tokens()) is not first and len(runs) == 1


def test_a_grid_that_does_not_fit_is_not_known() -> None:
    one = reduction()
    for noted_grid, count, known in (((2, 6), 12, (2, 6)), ((2, 5), 12, None), (GRID, 12, GRID)):
        noted.note_grid(one, noted_grid)
        run = stack.open_run(one, tokens(count=count))
        assert run is not None and run.grid == known and run.entered == COUNT


def test_taps_need_tokens_that_come_back() -> None:
    one = reduction(restoring=Restoring("copy", "copy", ends=False, taps=False, charged=False))
    assert stack.open_run(one, tokens(), lambda patch: frozenset()) is not None
    with pytest.raises(InvalidValueError, match="this call returns feature maps"):
        stack.open_run(one, tokens(), lambda patch: frozenset({1}))
    tapped = reduction()
    run = stack.open_run(tapped, tokens(), lambda patch: frozenset({1}) if patch is tapped else frozenset())
    assert run is not None and run.taps.layers == {1}


def test_only_layers_that_reduce_are_asked_what_they_show(runs) -> None:
    one, other = reduction(), reduction()
    assert stack.capturing(one) is None
    x, shows = tokens(), []
    for index in range(4):
        run = stack.join(one, index, x)
        shows.append(stack.capturing(one) is run)
        assert stack.capturing(other) is None
        x = stack.leave(run, index, run.reduce(index, run.enter(index, x), "mid"))
    assert shows == [False, True, True, False]


def test_a_start_that_fails_leaves_nothing(runs, monkeypatch) -> None:
    one = reduction()

    def fail(run: Any, x: Tensor) -> None:
        raise ArithmeticError

    monkeypatch.setattr(stack.Run, "begin", fail)
    with pytest.raises(ArithmeticError):
        stack.open_run(one, tokens())
    assert runs == []


def stop(module: Any, args: Any) -> None:
    raise ArithmeticError


# Rows whose layers open and close the run themselves, so that a forward that stops leaves one.
@pytest.mark.parametrize("name", ["hf_vit_model", "torchvision_vit", "timm_eva", "hf_clip_vision"])
@torch.no_grad()
def test_a_stopped_forward_is_forgotten_by_the_next(runs, name) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    patch(model, "tome", ratio=0.5, restore="delta")  # holds on to tokens around each map
    handle = model.get_submodule(backbone.last).register_forward_pre_hook(stop)
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            backbone.outputs(model, backbone.inputs())
        assert len(runs) == 1, "one at most, of the forward that stopped"
    held = weakref.ref(runs[0].maps[0].dest)
    assert held() is not None
    handle.remove()
    backbone.outputs(model, backbone.inputs(seed=1))
    assert runs == [], "also what the stopped forwards left"
    gc.collect()
    assert held() is None
    unpatch(model)


@torch.no_grad()
def test_forget_frees_what_a_stopped_forward_held(runs) -> None:
    one = reduction(restoring=Restoring("delta", "delta", ends=True, taps=True, charged=False))
    other = reduction()
    layer(one, 1, layer(one, 0, tokens()))
    layer(other, 0, tokens())
    held = weakref.ref(runs[0].around[0][1])
    gc.collect()
    assert held() is not None
    stack.forget(one)
    gc.collect()
    assert held() is None and [run.reduction for run in runs] == [other]


@torch.no_grad()
def test_stopping_early_leaves_nothing(runs) -> None:
    model = shared_model("timm_eva")
    patch(model, "tome", ratio=0.5)
    x = BY_NAME["timm_eva"].inputs()["x"]
    for early in (True, False):
        model.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=early)
        assert runs == []
    assert len(report(model).tokens) == 4
    unpatch(model)
