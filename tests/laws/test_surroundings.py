"""What stands around a forward decides nothing and leaves no trace: fake tensors, default types, transforms, graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from backbones import Backbone, fresh_model
from choosing import exportable, on_one_row
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap

import tokenreduce
from tokenreduce import patch
from tokenreduce.ops import constants

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = tokenreduce.methods("encoder")
KEPT = (constants._kept_counting, constants._kept_constant)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """Constants are kept for the whole process: each test starts without any."""
    for kept in KEPT:
        kept.cache_clear()


@pytest.fixture
def default_type() -> Iterator[None]:
    """Sets the default type back."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def patched(backbone: Backbone, method: str) -> nn.Module:
    return patch(fresh_model(backbone), method, flops=0.7)


def outputs(backbone: Backbone, model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return backbone.outputs(model, backbone.inputs())


def forward_of_fakes(backbone: Backbone, model: nn.Module) -> None:
    """Shapes without numbers, as estimators of memory run it."""
    # Models of videos keep positions that are neither parameters nor buffers.
    mode = FakeTensorMode(allow_non_fake_inputs=backbone.videos)
    state = {name: mode.from_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}
    given = {n: mode.from_tensor(v) if isinstance(v, Tensor) else v for n, v in backbone.inputs().items()}
    with mode, torch.no_grad():
        functional_call(model, state, (), given)


@on_one_row()
@pytest.mark.parametrize("first", ["fake", "real"])
def test_fake_tensors_leave_later_forwards_right(backbone: Backbone, method: str, first: str) -> None:
    model = patched(backbone, method)
    if first == "real":
        outputs(backbone, model)
    forward_of_fakes(backbone, model)
    found = outputs(backbone, model), outputs(backbone, patched(backbone, method))
    for kept in KEPT:
        kept.cache_clear()
    expected = outputs(backbone, patched(backbone, method))
    for out in found:
        assert [*map(torch.equal, out, expected)] == [True] * len(expected)


@on_one_row([method for method in METHODS if exportable(method)])
def test_exporting_in_fake_mode_leaves_later_forwards_right(backbone: Backbone, method: str) -> None:
    model = patched(backbone, method)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=backbone.inputs(), strict=False)
    expected = outputs(backbone, model)
    for other in (patched(backbone, method), program.module()):
        torch.testing.assert_close(outputs(backbone, other), expected, atol=1e-5, rtol=1e-5)


@on_one_row()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_type_decides_nothing(backbone: Backbone, method: str, dtype: torch.dtype, default_type) -> None:
    model, inputs = fresh_model(backbone), backbone.inputs()
    expected = outputs(backbone, patched(backbone, method))
    torch.set_default_dtype(dtype)
    with torch.no_grad():
        found = backbone.outputs(patch(model, method, flops=0.7), inputs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    shown = tokenreduce.report(model)
    assert all(token_map.sizes().dtype == torch.float32 for _, token_map in shown.maps)
    assert shown.sizes.dtype == torch.float32


@on_one_row()
def test_gradients_of_single_images(backbone: Backbone, method: str) -> None:
    """`vmap` of `grad` gives what a loop over the images gives."""
    model, inputs = patched(backbone, method), backbone.inputs()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    among = [name for name, value in inputs.items() if isinstance(value, Tensor)]

    def loss(parameters: dict[str, Tensor], *one: Tensor) -> Tensor:
        given = inputs | {name: value[None] for name, value in zip(among, one, strict=True)}
        out = backbone.outputs(lambda **given: functional_call(model, parameters, (), given), given)  # type: ignore[arg-type]
        return sum(tensor.square().mean() for tensor in out)  # type: ignore[return-value]

    images = [inputs[name] for name in among]
    together = vmap(grad(loss), (None, *(0 for _ in among)))(parameters, *images)
    for i in range(2):
        alone = grad(loss)(parameters, *(value[i] for value in images))
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][i], gradient, atol=1e-5, rtol=1e-4, msg=name)


@on_one_row()
def test_nothing_is_kept_of_a_capture(backbone: Backbone, method: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(constants, "_on_devices", {})
    outputs(backbone, patched(backbone, method))
    assert [kept.cache_info().currsize for kept in KEPT] == [0, 0] and not constants._on_devices
