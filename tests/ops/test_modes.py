"""What the library asks of PyTorch's private API, and what happens where that is gone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce.ops import sized_attention
from tokenreduce.ops.modes import (
    asking_torch,
    backward_pass,
    dispatch_modes,
    function_transform,
    is_tracing,
    without_modes,
)
from tokenreduce.ops.native import dispatch

ASKED = {
    "dispatch_modes": "_C._len_torch_dispatch_stack",
    "function_transform": "_C._functorch.peek_interpreter_stack",
    "is_tracing": "_C._is_tracing",
}


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_who_looks_at_operators() -> None:
    answers = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        answers.append((bool(dispatch_modes()), function_transform() is not None, bool(is_tracing())))
        return x + 1

    x = torch.zeros(2)
    ask(x)
    with Looking():
        ask(x)
    torch.func.vmap(ask)(x)
    torch.jit.trace(ask, x, check_trace=False)
    assert answers == [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]


@pytest.mark.parametrize("name", ASKED)
def test_where_pytorch_cannot_be_asked_its_own_operators_run(name, monkeypatch, caplog) -> None:
    *holder, attribute = ASKED[name].split(".")
    owner = torch._C._functorch if len(holder) == 2 else torch._C
    assert asking_torch(ASKED[name]) is getattr(owner, attribute)
    monkeypatch.delattr(owner, attribute)
    with caplog.at_level(logging.WARNING, "tokenreduce"):
        missing = asking_torch(ASKED[name])
    assert f"PyTorch {torch.__version__} has no torch.{ASKED[name]}" in caplog.text
    for module in (dispatch, sized_attention):
        monkeypatch.setattr(module, name, missing)
    assert dispatch.why_not("merge_apply", torch.zeros(2, 3)) in (dispatch.WATCHED, dispatch.TRACED)
    assert dispatch.choose("merge_apply", torch.zeros(2, 3)) is None
    monkeypatch.setattr(sized_attention, "_chosen", "auto")
    like = torch.zeros(1, 2, 4, dtype=torch.half)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert "takes the mask" in sized_attention.why_not(like)


@pytest.mark.parametrize("path", ["_C._current_graph_task_id", "utils._python_dispatch._disable_current_modes"])
def test_what_stands_in_the_place_of_what_is_gone(path, monkeypatch, caplog) -> None:
    *holder, name = path.split(".")
    owner = torch._C if len(holder) == 1 else torch.utils._python_dispatch
    monkeypatch.delattr(owner, name)
    with caplog.at_level(logging.WARNING, "tokenreduce"):
        assert asking_torch(path, lambda: 7, "less is said")() == 7
    assert f"PyTorch {torch.__version__} has no torch.{path}: less is said" in caplog.text


def test_blocks_that_no_mode_sees() -> None:
    with Looking():
        assert dispatch_modes() == 1
        with without_modes():
            assert dispatch_modes() == 0
        assert dispatch_modes() == 1
    assert backward_pass() == -1
