"""`patch` and its companions: budgets, errors that leave the model alone, reports, files, registration."""

from __future__ import annotations

import pytest
import timm
import torch
from backbones import fresh_model, shared_model
from choosing import MAIN
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from timms import small_vit
from torch import nn

import tokenreduce
from tokenreduce import Schedule, compatible, patch, reduced, report, unpatch

X = MAIN.images()


@pytest.fixture
def model() -> nn.Module:
    return fresh_model(MAIN)


class OtherBlock(Block):
    """What another tool's patch leaves behind."""


class OtherViT(VisionTransformer):
    """A user's subclass that treats tokens by position."""

    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x).flip(1)


def patched_by_something_else() -> nn.Module:
    model = small_vit()
    for block in model.blocks:
        block.__class__ = OtherBlock
    return model


def differential() -> nn.Module:
    pytest.importorskip("timm", "1.0.28")  # not to be chosen before
    return small_vit(attn_layer="diff")


def replaced_forward() -> nn.Module:
    model = small_vit()
    model.blocks[1].forward = lambda x: x
    return model


def checkpointing() -> nn.Module:
    model = small_vit()
    model.set_grad_checkpointing(True)
    return model


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "tomee", "flops": 0.6}, ValueError, r"unknown method 'tomee'; valid: .*tome.*did you mean 'tome'"),
        ({"method": 3, "flops": 0.6}, TypeError, "method must be a name"),
        (
            {"method": "tome", "flops": 0.6, "metrik": "keys"},
            ValueError,
            r"unknown option of tome 'metrik'; valid: metric.*did you mean",
        ),
        (
            {"method": "tome", "flops": 0.6, "metric": "pixels"},
            ValueError,
            "metric is 'pixels'; valid: 'keys', 'features'",
        ),
        ({"method": "random", "flops": 0.6, "seed": 0.5}, TypeError, "seed is 0.5; it must be of type int"),
        (
            {"method": "tome", "flops": 0.6, "r": 3},
            TypeError,
            "got r=3 and flops=0.6; give exactly one of ratio, r, flops, keep and schedule",
        ),
        ({"method": "tome"}, TypeError, "got no budget; give exactly one"),
        ({"method": "tome", "ratio": 1.2}, ValueError, r"ratio is 1.2; .* lies in \[0, 1\)"),
        ({"method": "tome", "flops": 1.5}, ValueError, r"flops is 1.5; .* lies in \(0, 1\]"),
        ({"method": "tome", "flops": float("nan")}, ValueError, "flops is nan"),
        ({"method": "tome", "flops": 0.01}, ValueError, "reachable minimum is flops=0"),
        ({"method": "tome", "r": -1}, ValueError, "must not be negative"),
        ({"method": "tome", "r": [1] * 9}, ValueError, "the model has 4 layers, numbered 0 to 3"),
        ({"method": "tome", "ratio": 0.5, "layers": [7]}, ValueError, "layer 7 does not exist"),
        (
            {"method": "tome", "schedule": Schedule.keep({1: 0.2})},
            ValueError,
            "should keep 0.2 of 64 .* leaves 32 at least",
        ),
        ({"method": "tome", "schedule": {3: 0.5}}, TypeError, "must be a tokenreduce.Schedule"),
        ({"method": "tome", "schedule": Schedule.keep({1: 0.5}), "layers": [1]}, TypeError, "exclude each other"),
        (
            {"method": "tome", "ratio": 0.5, "restore": "yes"},
            ValueError,
            "restore is 'yes'; valid: True, False, \"auto\"",
        ),
        ({"method": "tome", "ratio": 0.5, "restore": [True]}, ValueError, r"restore is \[True\]; valid: True"),
        ({"method": "tome", "ratio": 0.5, "prop_attn": 1.5}, ValueError, "prop_attn is 1.5"),
        ({"method": "tome", "ratio": 0.5, "layers": torch.tensor([1, 2])}, TypeError, "list of layer"),
    ],
)
@pytest.mark.parametrize("before", [None, {"method": "pool", "ratio": 0.5}], ids=["unpatched", "patched"])
def test_wrong_arguments_leave_the_model_as_it_was(model, arguments, error, message, before) -> None:
    if before:
        patch(model, **before)
    expected = model(X)
    with pytest.raises(error, match=message):
        patch(model, **arguments)
    assert torch.equal(model(X), expected)
    assert ("_tokenreduce" in vars(model)) == bool(before)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"ResNet holds no backbone .* known: .*timm vit"),
        (
            lambda: nn.ModuleList([small_vit(), small_vit()]),
            r"several backbones: 0 \(VisionTransformer\), 1 \(VisionTransformer\)",
        ),
        (patched_by_something_else, r"blocks are of class OtherBlock \(known: Block"),
        (lambda: small_vit(block_fn=ParallelScalingBlock), "ParallelScalingBlock"),
        (differential, "attention is DiffAttention"),
        (replaced_forward, "a forward method was replaced"),
        (checkpointing, "gradient checkpointing is on"),
        (
            lambda: OtherViT(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2),
            "forward_features of its own",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(build, message) -> None:
    model = build()
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        patch(model, "tome", flops=0.7)
    assert [type(m) for m in model.modules()] == classes


def test_not_a_module_and_not_patched() -> None:
    with pytest.raises(TypeError, match=r"model is str; it must be a torch.nn.Module"):
        patch("deit_small_patch16_224", "tome", flops=0.6)
    with pytest.raises(ValueError, match=r"is not patched; call tokenreduce.patch"):
        report(small_vit())
    assert unpatch(nn.Linear(2, 2)).out_features == 2


def test_causal_masks_are_refused(model) -> None:
    pytest.importorskip("timm", "1.0.28")  # no such argument before
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="attn_mask and is_causal do not fit"):
        model.forward_intermediates(X, is_causal=True)


def test_masks_and_late_checkpointing_are_refused(model) -> None:
    mask = torch.ones(65, 65, dtype=torch.bool)
    patch(model, "tome", r=0)
    model(X, attn_mask=mask)
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="attn_mask and is_causal do not fit a reduced model"):
        model(X, attn_mask=mask)
    expected = model(X)
    model.train().set_grad_checkpointing(True)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(X).sum().backward()
    model.eval().set_grad_checkpointing(False)
    assert torch.equal(model(X), expected)


def test_patch_dropout_in_training() -> None:
    model = small_vit(patch_drop_rate=0.5).train()
    patch(model, "tome", ratio=0.5)
    assert model(X).shape == (2, 7)
    assert report(model).input_tokens == 32
    patch(model, "pool", ratio=0.5)
    with pytest.raises(ValueError, match="patch dropout in training takes the grid away"):
        model(X)


def test_patching_again_replaces(model) -> None:
    patch(model, "tome", ratio=0.5)
    patch(model, "pool", ratio=0.25)
    fresh = patch(fresh_model(MAIN), "pool", ratio=0.25)
    assert torch.equal(model(X), fresh(X))
    assert sum(len(m._forward_hooks) for m in model.modules()) == sum(len(m._forward_hooks) for m in fresh.modules())


def test_reduced_undoes_itself_also_after_an_exception(model) -> None:
    plain = model(X)
    with pytest.raises(ArithmeticError), reduced(model, "tome", ratio=0.5):
        raise ArithmeticError
    assert torch.equal(model(X), plain)
    patch(model, "pool", ratio=0.5)
    pooled = model(X)
    with reduced(model, "tome", ratio=0.5) as inner:
        assert inner is model and not torch.equal(model(X), pooled)
    assert torch.equal(model(X), pooled)
    with pytest.raises(ValueError, match="unknown method"), reduced(model, "nothing", ratio=0.5):
        pass
    assert torch.equal(model(X), pooled)


def test_proportional_attention_follows_the_weights(model) -> None:
    patch(model, "tome", ratio=0.6)
    biased = model(X)
    patch(model, "tome", ratio=0.6, prop_attn=False)
    plain = model(X)
    assert not torch.equal(biased, plain)
    model.pretrained_cfg = {"tag": "mae"}
    patch(model, "tome", ratio=0.6)
    assert torch.equal(model(X), plain)


def test_proportional_attention_equals_repeated_keys() -> None:
    """Integer sizes in the mask equal every key and value standing there that many times."""
    q, k, v = torch.randn(3, 1, 2, 6, 8).unbind(0)
    sizes = torch.tensor([1, 3, 2, 1, 5, 1])
    biased = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sizes.log()[None, None, None])
    repeated = nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(sizes, 2), v.repeat_interleave(sizes, 2)
    )
    assert torch.allclose(biased, repeated, atol=1e-5)


def test_compatible() -> None:
    fits = compatible(shared_model("timm_vit_average"))
    assert sorted([*fits, *fits.refused]) == tokenreduce.methods()
    assert fits.refused["evit"] == "it needs class_attention, but the model has no class token"
    assert fits.refused["centerclip"] == "it needs frames, but the model takes images, not videos"
    assert compatible(shared_model(MAIN.name)) == MAIN.methods
    assert "not evit" in repr(fits)
