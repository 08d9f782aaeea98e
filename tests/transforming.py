"""Transforms of patched models: `tests/laws/test_transforms.py` runs the cheap ones, `benchmarks/transforms.py` all.

Each takes a `Patched` and raises if what it gives is not what the patched model gives.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from backbone_checks import close
from backbones import BY_NAME, Backbone, new_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, stack_module_state, vmap

import tokenreduce
from tokenreduce import patch
from tokenreduce.errors import TokenReduceError

# Every round makes a graph longer and none is different.
FEW_ROUNDS = {"iterations": 2, "neighbours": 2}


@cache
def models() -> dict[str, Backbone]:
    """A small model of each library, which stands for all methods that it fits; for compilers, whose time grows with
    the layers."""
    from hugging import SMALL, hf
    from transformers import ViTConfig

    config = ViTConfig(**SMALL | {"num_hidden_layers": 2, "image_size": 16}, num_labels=7)
    short = hf(
        "hf_vit_short", "ViTForImageClassification", config, last="vit.layers.1.mlp.fc1", silence=(), grid=(4, 4)
    )
    return {"timm": BY_NAME["timm_vit_short"], "transformers": short}


class Outputs(nn.Module):
    """A row's model as a function of images that returns a list of tensors."""

    def __init__(self, row: Backbone, model: nn.Module) -> None:
        super().__init__()
        self.row, self.model = row, model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.row.outputs(self.model, self.row.given(images))


class Patched:
    """A new model of a row, patched with half of its tokens to keep; with no method it is the unpatched one."""

    def __init__(self, row: Backbone, method: str | None, **options: Any) -> None:
        self.row, self.method, self.options = row, method, options
        self.model = self.patch(new_model(row))
        self.call = Outputs(row, self.model).eval()
        self.images, self.more = row.images(2, seed=1), row.images(3, seed=2)  # two batch sizes
        self.parameters = {name: parameter.detach() for name, parameter in self.call.named_parameters()}

    def patch(self, model: nn.Module) -> nn.Module:
        if self.method is None:
            return model
        names = tokenreduce.describe(self.method)["options"]
        few = {name: few for name, few in FEW_ROUNDS.items() if name in names}
        return patch(model, self.method, ratio=0.5, **few | self.options)

    @torch.no_grad()
    def compare(self, found: Any, images: Tensor, tolerance: float = 1e-5) -> None:
        """Raise unless these are the model's outputs for these images."""
        if not close(list(found), self.call(images), tolerance):
            raise DiffersError("the outputs differ")


class DiffersError(Exception):
    """A transform gave something else than the model."""


def jit_trace(patched: Patched) -> None:
    traced = torch.jit.trace(patched.call, patched.images)
    for images in (patched.images, patched.more):
        patched.compare(traced(images), images)


def export(patched: Patched) -> None:
    free = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(patched.call, (patched.images,), dynamic_shapes=free)
    patched.compare(program.module()(patched.more), patched.more)


def compile_whole(patched: Patched) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(patched.call, fullgraph=True, backend="aot_eager")
    patched.compare(compiled(patched.images), patched.images)


def onnx(patched: Patched) -> None:
    import onnxruntime

    free = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        patched.call, (patched.images,), dynamo=True, dynamic_shapes=free, optimize=False, verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: patched.more.numpy()})
    patched.compare(map(torch.from_numpy, found), patched.more, 1e-4)


def old_onnx(patched: Patched) -> None:
    torch.onnx.export(patched.call, (patched.images,), io.BytesIO(), dynamo=False)


def each_image(patched: Patched) -> None:
    with torch.no_grad():
        found = vmap(lambda image: patched.call(image[None]))(patched.images)
    patched.compare([tensor.flatten(0, 1) for tensor in found], patched.images)


def ensemble(patched: Patched) -> None:
    models = [patched.call, Patched(patched.row, patched.method, **patched.options).call]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.05)
        expected = [model(patched.images) for model in models]
        state = stack_module_state(models)
        found = vmap(lambda *state: functional_call(patched.call, state, (patched.images,)))(*state)
    for i, outputs in enumerate(expected):
        if not close([tensor[i] for tensor in found], outputs, 1e-5):
            raise DiffersError("the outputs of one model differ")


def gradients_of_images(patched: Patched) -> None:
    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        outputs = functional_call(patched.call, parameters, (image[None],))
        return torch.stack([tensor.square().mean() for tensor in outputs]).sum()

    together = vmap(grad(loss), (None, 0))(patched.parameters, patched.images)
    for i, image in enumerate(patched.images):
        alone = grad(loss)(patched.parameters, image)
        if not close([together[name][i] for name in alone], [*alone.values()], 1e-5):
            raise DiffersError("the gradients of one image differ")


def called_with_parameters(patched: Patched) -> None:
    given = {name: parameter * 1.05 for name, parameter in patched.parameters.items()}
    with torch.no_grad():
        found = functional_call(patched.call, given, (patched.images,))
    patched.call.load_state_dict(given, strict=False)
    patched.compare(found, patched.images)


def fake(patched: Patched) -> None:
    # Some models keep constants that are neither parameters nor buffers.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad():
        state = {name: mode.from_tensor(tensor.detach()) for name, tensor in patched.call.state_dict().items()}
        with mode:
            found = functional_call(patched.call, state, (mode.from_tensor(patched.images),))
        expected = patched.call(patched.images)
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        raise DiffersError("the shapes differ")
    patched.compare(Patched(patched.row, patched.method, **patched.options).call(patched.images), patched.images)


def other_default(dtype: torch.dtype) -> Callable[[Patched], None]:
    def check(patched: Patched) -> None:
        before, model = torch.get_default_dtype(), new_model(patched.row)
        torch.set_default_dtype(dtype)
        try:
            found = Outputs(patched.row, patched.patch(model)).eval()(patched.images)
        finally:
            torch.set_default_dtype(before)
        patched.compare(found, patched.images, 1e-6)

    return check


def other_device(patched: Patched) -> None:
    """The default device says where tensors are made that nobody says it of."""
    with torch.device("meta"), torch.no_grad():
        found = patched.call(patched.images)
    patched.compare(found, patched.images, 1e-6)


def symbolic_trace(patched: Patched) -> None:
    traced = torch.fx.symbolic_trace(patched.model)
    patched.compare(patched.row.outputs(traced, patched.row.given(patched.images)), patched.images)


def script(patched: Patched) -> None:
    scripted = torch.jit.script(patched.model)
    patched.compare(patched.row.outputs(scripted, patched.row.given(patched.images)), patched.images)


CHEAP: dict[str, Callable[[Patched], None]] = {
    "vmap": each_image,
    "ensemble": ensemble,
    "gradients of each image": gradients_of_images,
    "functional_call": called_with_parameters,
    "fake tensors": fake,
    "default float64": other_default(torch.float64),
    "default bfloat16": other_default(torch.bfloat16),
    "default device": other_device,
    "fx": symbolic_trace,
    "jit.script": script,
}
COMPILERS: dict[str, Callable[[Patched], None]] = {
    "jit.trace": jit_trace,
    "export": export,
    "compile": compile_whole,
    "ONNX": onnx,
    "ONNX, dynamo=False": old_onnx,
}
TRANSFORMS = CHEAP | COMPILERS


def outcome(name: str, row: Backbone, method: str | None, **options: Any) -> str:
    """ "right", "wrong: ...", "refused: ..." with the library's sentence, "crash: ..." with another error, or "cannot:
    ..." where the model raises one unpatched, too."""
    try:
        TRANSFORMS[name](Patched(row, method, **options))
    except DiffersError as error:
        return f"wrong: {error}"
    except Exception as error:
        words = own_words(error)
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        if words:
            return f"refused: {words}"
        alone = method is not None and outcome(name, row, None).startswith("crash")
        return f"{'cannot' if alone else 'crash'}: {type(error).__name__} {lines[0][:200]}"
    return "right"


def own_words(error: BaseException | None) -> str | None:
    """What the library said, also where a tool of PyTorch has put an error of its own around it."""
    while error is not None:
        if isinstance(error, TokenReduceError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
