"""Law 2: `unpatch` restores everything, and copies and pickles behave like the model."""

from __future__ import annotations

import copy
import io
import pickle

import backbone_checks as checks
import pytest
import torch
from backbones import Backbone, fresh_model, new_model
from choosing import every_backbone, pairs
from torch import nn

import tokenreduce
from tokenreduce import patch, reduced, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@every_backbone()
def test_unpatch_restores_classes_hooks_and_keys(backbone: Backbone) -> None:
    model, inputs = fresh_model(backbone), backbone.inputs()
    checks.everything(model, backbone, inputs)  # libraries add hooks of their own in the first call

    def state() -> list:
        return [
            (name, type(m), dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ]

    before, keys = state(), list(model.state_dict())
    for method in ("tome", "ward"):
        patch(model, method, ratio=0.5)
        assert list(model.state_dict()) == keys
    unpatch(model)
    assert state() == before
    with reduced(model, "tome", ratio=0.5), reduced(model, "ward", ratio=0.3):
        pass
    assert state() == before


@pairs(everywhere=("tome", "ward"), main=tokenreduce.methods("encoder"))
def test_copies_and_pickles_behave_alike(backbone: Backbone, method: str) -> None:
    inputs, model = backbone.inputs(), new_model(backbone)
    patch(model, method, ratio=0.5)
    twins = [copy.deepcopy(model), *pickled(model, backbone)]
    reduced = checks.everything(model, backbone, inputs)
    plain = checks.everything(unpatch(model), backbone, inputs)
    assert not checks.same(reduced, plain)
    for twin in twins:
        assert checks.same(checks.everything(twin, backbone, inputs), reduced)
        assert checks.same(checks.everything(unpatch(twin), backbone, inputs), plain)


def pickled(model: nn.Module, backbone: Backbone) -> list[nn.Module]:
    """The patched model from a string and from a file, unless it cannot be pickled unpatched either: backbones of
    transformers hold hooks that are local functions from the beginning."""
    try:
        text = pickle.dumps(model)
    except AttributeError:
        with pytest.raises(AttributeError):
            pickle.dumps(new_model(backbone))
        return []
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return [pickle.loads(text), torch.load(buffer, weights_only=False)]


def test_features_only_wrapper() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, features_only=True).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    patch(model, "tome", flops=0.7)
    after = model(x)
    assert [t.shape for t in after] == [t.shape for t in before]
    assert not torch.equal(after[-1], before[-1])
    assert all(torch.equal(a, b) for a, b in zip(unpatch(model)(x), before, strict=True))
