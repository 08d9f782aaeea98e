"""Constants: their types, and where they are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenreduce.ops import constants
from tokenreduce.ops.constants import constant, counting

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # meta: as on a GPU, but without numbers


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch) -> None:
    constants._kept_counting.cache_clear()
    constants._kept_constant.cache_clear()
    monkeypatch.setattr(constants, "_on_devices", {})


@pytest.fixture
def capture(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def kept() -> int:
    caches = constants._kept_counting, constants._kept_constant
    return sum(cache.cache_info().currsize for cache in caches) + len(constants._on_devices)


def test_numbers_and_types() -> None:
    assert counting(4, CPU, 3).tolist() == [0, 3, 6, 9] and counting(2, CPU).dtype == torch.int64
    assert constant((), CPU).tolist() == [] and constant((), CPU).dtype == torch.int64
    # Equal numbers of another type are another constant.
    assert constant((1, 2), CPU).dtype == torch.int64 and constant((1.0, 2.0), CPU).dtype == torch.float32


def test_kept_between_forwards_and_usable_in_training() -> None:
    with torch.inference_mode():
        made = constant((1.0, 2.0), CPU), counting(3, CPU)
    assert constant((1.0, 2.0), CPU) is made[0] and counting(3, CPU) is made[1]
    assert not any(tensor.is_inference() for tensor in made)


def test_on_other_devices_constants_are_kept_for_good_and_counting_is_made_anew() -> None:
    many = [constant((number,), ELSEWHERE) for number in range(1000)]
    assert [constant((number,), ELSEWHERE) for number in range(1000)] == many
    assert counting(3, ELSEWHERE) is not counting(3, ELSEWHERE) and kept() == 1000


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_nothing_is_kept_while_something_watches() -> None:
    def transformed(x: Tensor) -> Tensor:
        return x + constant((1.0, 2.0), CPU) + counting(2, CPU)

    with FakeTensorMode():
        assert type(constant((1, 2), CPU)) is not Tensor
        counting(2, CPU)
        constant((1, 2), ELSEWHERE)
    torch.func.vmap(transformed)(torch.zeros(3, 2))
    torch.compile(transformed, backend="eager", fullgraph=True)(torch.zeros(2))
    torch.jit.trace(transformed, torch.zeros(2), check_trace=False)
    assert kept() == 0


def test_a_capture_reads_what_is_kept_and_keeps_nothing(request) -> None:
    before = constant((1, 2), ELSEWHERE)
    request.getfixturevalue("capture")
    assert constant((1, 2), ELSEWHERE) is before
    with pytest.raises(ValueError, match="run the model once on an input of this shape before the capture"):
        constant((1, 2, 3), ELSEWHERE)
    assert constant((5,), CPU).tolist() == [5] and counting(2, CPU).tolist() == [0, 1]
    assert kept() == 1
