"""Laws 4 to 6: protected tokens are never touched, images do not depend on their batch, any precision will do."""

from __future__ import annotations

import backbone_checks as checks
import pytest
import torch
from backbones import Backbone, Inputs, fresh_model, silenced
from choosing import MAIN, SAMPLE, pairs
from tokenreduce.patches.shared.scanned import to_front
from torch import Tensor

import tokenreduce
from tokenreduce import patch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


# Law 4: protected tokens are never touched.
@pairs(everywhere=SAMPLE, main=tokenreduce.methods("encoder"), where=lambda row: row.prefix + row.suffix > 0)
def test_protected_tokens_pass_untouched(backbone: Backbone, method: str) -> None:
    """With silenced layers, protected tokens leave the last layer as they entered the first."""
    model = silenced(fresh_model(backbone), backbone)
    patch(model, method, ratio=0.5)
    seen: list[Tensor] = []
    _, part, adapter = tokenreduce.patching.finding.find_backbone(model)
    layers = adapter.layers(part)
    layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    if backbone.scans:
        layers[-1].mixer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        layers[-1].norm = torch.nn.Identity()
    else:
        layers[-1].mlp_line = remember(layers[-1].mlp_line, seen)
    with torch.no_grad():
        backbone.outputs(model, backbone.inputs())
    first, last = seen
    first = to_front(first) if backbone.scans == "middle" else first
    assert last.shape[1] < first.shape[1]
    assert torch.equal(first[:, : backbone.prefix], last[:, : backbone.prefix])
    begin = [tokens.shape[1] - backbone.suffix for tokens in seen]
    assert torch.equal(first[:, begin[0] :], last[:, begin[1] :])


def remember(function, seen):
    def wrapped(x):
        seen.append(x)
        return function(x)

    return wrapped


# Law 5: deterministic, independent of the other images of the batch.
def some(inputs: Inputs, index: list[int]) -> Inputs:
    """The images of these numbers."""
    return {name: value[index] if isinstance(value, Tensor) else value for name, value in inputs.items()}


@pairs(everywhere=SAMPLE, first=tokenreduce.methods("encoder"), main=tokenreduce.methods("encoder"))
def test_an_image_does_not_depend_on_its_batch(backbone: Backbone, method: str) -> None:
    x = backbone.inputs(2)
    with checks.shared(backbone) as model, torch.no_grad():
        patch(model, method, ratio=0.5)
        together = backbone.outputs(model, x)
        assert checks.same(backbone.outputs(model, x), together)
        turned = backbone.outputs(model, some(x, [1, 0]))
        alone = [backbone.outputs(model, some(x, [i])) for i in range(2)]
    assert checks.close([torch.cat(parts) for parts in zip(*alone, strict=True)], together, 1e-4)
    assert checks.close([out.flip(0) for out in turned], together, 1e-4)


# Law 6: dtypes.
@pairs(everywhere=("tome",), main=tokenreduce.methods("encoder"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(backbone: Backbone, method: str, dtype: torch.dtype) -> None:
    """Rounding may turn a choice between two tokens, which shows on tiny images: outputs must be close on the whole."""
    x = backbone.inputs(4)
    model = fresh_model(backbone)
    patch(model, method, ratio=0.3)
    with torch.no_grad():
        truth = backbone.outputs(model, x)
        with torch.autocast("cpu", dtype):
            mixed = backbone.outputs(model, x)
        model = model.to(dtype)
        half = backbone.outputs(
            model, {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in x.items()}
        )
    for other in (mixed, half):
        for a, b in zip(other, truth, strict=True):
            assert a.isfinite().all() and a.shape == b.shape
            assert (a.float() - b).abs().median() < 0.1 * b.abs().max()
    if backbone is MAIN:  # of a classifier the typical image as a whole
        assert half[0].dtype == dtype
        for [other] in (mixed, half):
            assert (other.float() - truth[0]).abs().amax(1).median() < 0.1 * truth[0].abs().max()


def test_double_precision_and_meta_tensors() -> None:
    model, x = patch(fresh_model(MAIN).double(), "tome", ratio=0.5), MAIN.images().double()
    single = patch(fresh_model(MAIN), "tome", ratio=0.5)
    assert torch.allclose(model(x), single(x.float()).double(), atol=1e-5)
    assert model.to("meta")(x.to("meta")).shape == (2, 7)
