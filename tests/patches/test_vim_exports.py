"""Patched `VisionMamba` compiles and exports with rules of scans of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenreduce import Schedule, patch
from tokenreduce.models.vim import VisionMamba

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def short_model() -> VisionMamba:
    """For compilers and exports, whose time grows with layers and tokens."""
    torch.manual_seed(0)
    model = VisionMamba(16, 4, embed_dim=16, depth=2, states=4, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def short_images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("gap", ["size", "prev", "frozen"])
def test_gaps_compile_and_export(gap: str) -> None:
    torch._dynamo.reset()
    model, images, other = short_model(), short_images(2), short_images(3)
    patch(model, "ward" if gap == "size" else "hsa", schedule=Schedule.keep({0: 7}), scan_gap=gap)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-5)
        free = ({0: torch.export.Dim("batch", min=2, max=64)},)
        program = torch.export.export(model, (images,), dynamic_shapes=free)
        torch.testing.assert_close(program.module()(other), model(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("conv", "gap"), [("stand_in", "size"), ("stand_in", "frozen"), ("compact", "prev")])
def test_rules_run_in_onnx_runtime(conv: str, gap: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images, other = short_model(), short_images(2), short_images(3)
    patch(model, "tome" if gap == "size" else "mtr", schedule=Schedule.keep({0: 7}), scan_conv=conv, scan_gap=gap)
    free = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=free, optimize=False, verbose=False)
        expected = model(other)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    [found] = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)
