"""`Recorded`: inputs in, replay, outputs out, and refusing what a graph cannot take."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from fake_graphs import fake_graphs  # noqa: F401

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.ops.graphs import Recorded, own

pytestmark = pytest.mark.usefixtures("fake_graphs")
Pair = namedtuple("Pair", "a b")


def double(x: torch.Tensor, *, shift: torch.Tensor, times: int = 2) -> dict[str, torch.Tensor]:
    return {"out": x * times + shift, "shift": shift}


def test_inputs_go_in_and_outputs_come_out() -> None:
    recorded = Recorded(double, (torch.zeros(3),), {"shift": torch.ones(3), "times": 2})
    x, shift = torch.arange(3.0), torch.full((3,), 5.0)
    first = recorded(x, shift=shift, times=2)
    assert first["out"].tolist() == [5, 7, 9] and first["shift"].tolist() == [5, 5, 5]
    second = recorded(x + 1, shift=shift, times=2)
    assert second["out"].tolist() == [7, 9, 11] and first["out"].tolist() == [5, 7, 9]
    assert x.tolist() == [0, 1, 2] and shift.tolist() == [5, 5, 5]


def test_replaying_alone_keeps_the_last_inputs() -> None:
    recorded = Recorded(lambda x: x + 1, (torch.zeros(2),), {})
    recorded.replay()
    assert recorded.outputs.tolist() == [1, 1]
    recorded(torch.full((2,), 4.0))
    recorded.outputs.zero_()
    recorded.replay()
    assert recorded.outputs.tolist() == [5, 5]


def test_the_example_is_copied_and_may_change() -> None:
    example = torch.zeros(2)
    recorded = Recorded(lambda x: x + 1, (example,), {})
    example.fill_(9)
    recorded.replay()
    assert recorded.outputs.tolist() == [1, 1]


def test_no_gradients() -> None:
    weight = torch.ones(2, requires_grad=True)
    recorded = Recorded(lambda x: x * weight, (torch.zeros(2),), {})
    out = recorded(torch.ones(2, requires_grad=True))
    assert not out.requires_grad and out.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        (
            (torch.zeros(4),),
            {"shift": torch.ones(3)},
            InvalidValueError,
            r"argument 0 is a float32 tensor \(4,\) on cpu",
        ),
        (
            (torch.zeros(3).double(),),
            {"shift": torch.ones(3)},
            InvalidValueError,
            "float64 .* recorded with a float32",
        ),
        ((torch.zeros(3, device="meta"),), {"shift": torch.ones(3)}, InvalidValueError, "on meta; .* on cpu"),
        ((torch.zeros(3),), {"shift": 2.0}, InvalidValueError, "argument shift is 2.0; .* takes nothing else"),
        ((torch.zeros(3),), {}, InvalidTypeError, "got 1 positional argument; .* with 1 positional argument and shift"),
        ((), {"shift": torch.ones(3)}, InvalidTypeError, "got 0 positional arguments and shift"),
    ],
)
def test_other_inputs_are_refused(args, kwargs, error, words) -> None:
    recorded = Recorded(double, (torch.zeros(3),), {"shift": torch.ones(3)})
    with pytest.raises(error, match=words):
        recorded(*args, **kwargs)


def test_other_values_than_the_recorded_are_refused() -> None:
    recorded = Recorded(double, (torch.zeros(3),), {"shift": torch.ones(3), "times": 2})
    with pytest.raises(InvalidValueError, match="argument times is 3; the graph was recorded with 2"):
        recorded(torch.zeros(3), shift=torch.ones(3), times=3)


def test_copies_keep_the_type_of_what_holds_them() -> None:
    x = torch.ones(1)
    made = own({"pair": Pair(x, [x, None]), "word": "as it is"})
    assert type(made["pair"]) is Pair and made["pair"].b[1] is None and made["word"] == "as it is"
    assert made["pair"].a is not x and made["pair"].b[0].tolist() == [1]
