"""`patch` and its companions: budgets, errors that leave the model alone, reports, files, registration."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import timm
import torch
from families import BY_NAME, HEADS, METHODS, NO_CLASS, VIDEO, model_of, small_vit
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from torch import nn

import tokenreduce
from tokenreduce import Schedule, TokenMap, compatible, load_patch, patch, reduced, report, save_patch, unpatch

X = BY_NAME["qk_norm"].images()


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(model_of("qk_norm"))


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
            "got r=3 and flops=0.6; give exactly one of ratio, r, flops and schedule",
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
        ({"method": "tome", "ratio": 0.5, "prop_attn": 1.5}, ValueError, "prop_attn is 1.5"),
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
        (lambda: small_vit(attn_layer="diff"), "attention is DiffAttention"),
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


def test_masks_and_late_checkpointing_are_refused(model) -> None:
    mask = torch.ones(65, 65, dtype=torch.bool)
    patch(model, "tome", r=0)
    model(X, attn_mask=mask)
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="attn_mask and is_causal do not fit a reduced model"):
        model(X, attn_mask=mask)
    with pytest.raises(ValueError, match="attn_mask and is_causal do not fit"):
        model.forward_intermediates(X, is_causal=True)
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


@pytest.mark.parametrize("flops", [0.80, 0.60, 0.45])
@pytest.mark.parametrize("method", METHODS)
def test_flops_lands_within_two_points_on_deit_small(method, flops) -> None:
    model = timm.create_model("deit_small_patch16_224").eval()
    x = torch.zeros(1, 3, 224, 224)
    whole = 4_598_882_304
    try:
        patch(model, method, flops=flops)
    except ValueError as error:
        assert "reachable minimum is flops=" in str(error)
        return
    counted = tokenreduce.count_flops(model, x)
    assert counted.uncounted == {}
    assert abs(counted.total / whole - flops) < 0.02
    assert report(model).flops_share == pytest.approx(counted.total / whole, abs=0.002)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "gated", "deit_small_distilled_patch16_224"]
)
@pytest.mark.parametrize("method", ["tome", "pool"])
def test_closed_costs_agree_with_counting(name, method) -> None:
    model, x = copy.deepcopy(model_of(name)), BY_NAME[name].images(1)
    whole = tokenreduce.count_flops(model, x).total
    patch(model, method, flops=0.7)
    counted = tokenreduce.count_flops(model, x)
    assert report(model).flops_share == pytest.approx(counted.total / whole, rel=0.005)


def test_patching_again_replaces(model) -> None:
    patch(model, "tome", ratio=0.5)
    patch(model, "pool", ratio=0.25)
    fresh = patch(copy.deepcopy(model_of("qk_norm")), "pool", ratio=0.25)
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


def test_report(model) -> None:
    patch(model, "tome", r=[8, 0, 16])
    assert report(model).tokens == (56, 56, 40, 40)
    with pytest.raises(ValueError, match="there are no maps"):
        _ = report(model).map
    model.train()(X)
    result = report(model)
    assert result.sizes.shape == (2, 40) and result.sizes.sum(1).tolist() == [64, 64]
    assert not result.sizes.requires_grad
    assert [layer for layer, _ in result.maps] == [0, 2]
    assert result.map.dest.shape == (2, 64) and result.map.count == 40
    assert result.map_after(1).count == 56
    counted = torch.zeros(2, 40).scatter_add(1, result.map.dest, torch.ones(2, 64))
    assert torch.equal(counted, result.sizes)
    assert "tome(metric='keys'): 64 image tokens + 1 protected" in str(result)
    assert json.loads(json.dumps(result.to_json()))["tokens"] == [56, 56, 40, 40]


def test_restore_of_the_report_equals_forced_restoring(model) -> None:
    patch(model, "tome", ratio=0.5, restore=True)
    full = model.forward_features(X)
    patch(model, "tome", ratio=0.5)
    short = model.forward_features(X)
    assert torch.allclose(report(model).restore(short[:, 1:]), full[:, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("tome", {"flops": 0.6}),
        ("random", {"r": 5, "seed": 4}),
        ("evit", {"ratio": 0.5, "fuse": False, "prop_attn": False}),
        ("pool", {"schedule": Schedule.keep({1: 0.5, 2: 20}), "restore": True}),
    ],
)
def test_a_saved_patch_loads(model, tmp_path, method, arguments) -> None:
    patch(model, method, **arguments)
    save_patch(model, tmp_path / "patch.json")
    twin = load_patch(copy.deepcopy(model_of("qk_norm")), tmp_path / "patch.json")
    assert torch.equal(twin(X), model(X))
    assert torch.equal(twin.forward_features(X), model.forward_features(X))


def test_automatic_modes_stay_automatic_in_a_file(model, tmp_path) -> None:
    save_patch(patch(model, "tome", ratio=0.6), tmp_path / "patch.json")
    auto_encoder = copy.deepcopy(model_of("qk_norm"))
    auto_encoder.pretrained_cfg = {"tag": "mae"}
    load_patch(auto_encoder, tmp_path / "patch.json")
    assert torch.equal(auto_encoder(X), patch(model, "tome", ratio=0.6, prop_attn=False)(X))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokenreduce": 99}', '{"tokenreduce": 1, "method": "tome"}'])
def test_a_wrong_file_is_refused(model, tmp_path, text) -> None:
    (tmp_path / "patch.json").write_text(text)
    with pytest.raises(ValueError, match=r"patch\.json"):
        load_patch(model, tmp_path / "patch.json")


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


def test_dynamic_input_sizes_have_their_own_counts() -> None:
    model = copy.deepcopy(model_of("dynamic_size"))
    patch(model, "tome", ratio=0.5)
    for size in ((32, 32), (24, 40), (16, 64)):
        x = torch.randn(1, 3, *size)
        model(x)
        n = size[0] * size[1] // 16
        assert report(model).input_tokens == n and report(model).tokens_left == n // 2
        assert model.forward_intermediates(x, intermediates_only=True)[-1].shape[-2:] == (size[0] // 4, size[1] // 4)
    for size in ((40, 40), (24, 72)):
        with reduced(model, "pool", flops=0.6):
            x = torch.randn(1, 3, *size)
            first = tokenreduce.count_flops(model, x)
            assert tokenreduce.count_flops(model, x) == first, "resolving a budget must not be counted"
            assert report(model).flops_share == pytest.approx(0.6, abs=0.02)
    with reduced(model, "pool", ratio=0.5):
        model(torch.randn(1, 3, 16, 64))
        assert report(model).map.dest.view(4, 16)[0, :2].tolist() == [0, 0]


def test_compatible() -> None:
    fits = compatible(model_of("average_pool"))
    assert set(fits.refused) == NO_CLASS | VIDEO | HEADS and sorted([*fits, *fits.refused]) == tokenreduce.methods()
    assert fits.refused["evit"] == "it needs class_attention, but the model has no class token"
    assert fits.refused["centerclip"] == "it needs frames, but the model takes images, not videos"
    assert compatible(model_of("qk_norm")) == METHODS
    assert "not evit" in repr(fits)


def test_functional_layer_errors() -> None:
    x = torch.randn(2, 8, 4)
    for arguments, message in [
        ({"keep": 3}, "tome can leave 4 to 8 of 8 tokens, not 3"),
        ({"keep": 5, "keys": torch.randn(2, 7, 4)}, r"keys has shape \(2, 1, 7, 4\)"),
        ({"keep": 5, "sizes": torch.ones(2, 7)}, "sizes has shape"),
        ({"ratio": 1.0}, "ratio is 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenreduce.plan(x, "tome", **arguments)
    with pytest.raises(ValueError, match="evit needs class_attention; pass it to plan"):
        tokenreduce.plan(x, "evit", keep=4)
    with pytest.raises(TypeError, match="exactly one of keep"):
        tokenreduce.plan(x, "tome")
    token_map = tokenreduce.plan(x, "tome", ratio=0.5)
    with pytest.raises(ValueError, match=r"the map takes \(B, 8, C\)"):
        tokenreduce.apply(token_map, x[:, :5])
    with pytest.raises(ValueError, match=r"the map leaves \(B, 4, C\)"):
        tokenreduce.restore(token_map, x)


def test_a_new_method_is_one_class() -> None:
    from tokenreduce.reducers import registry

    @tokenreduce.register
    @dataclass(frozen=True)
    class First(tokenreduce.Reducer):
        """Keep the first tokens."""

        name: ClassVar[str] = "first"
        kind: ClassVar[str] = "pruning"
        paper: ClassVar[str] = "none"
        year: ClassVar[int] = 2026

        def plan(self, tokens, keep, state=None):
            index = torch.arange(tokens.count).expand(tokens.features.shape[0], -1)
            return TokenMap(keep, dest=index.clamp_max(keep - 1), rep=index[:, :keep], drops=True)

    try:
        model = patch(small_vit(), "first", flops=0.7)
        model(X)
        assert report(model).tokens_left < 64 and tokenreduce.describe("first")["summary"] == "Keep the first tokens."
        with pytest.raises(ValueError, match="'tome' is taken"):
            tokenreduce.register(dataclass(frozen=True)(type("Tome2", (First,), {"name": "tome"})))
        with pytest.raises(ValueError, match="lacks the class attribute 'kind'"):
            tokenreduce.register(type("Nameless", (tokenreduce.Reducer,), {"name": "nameless"}))
        with pytest.raises(TypeError, match="must be a frozen dataclass"):
            tokenreduce.register(type("Bare", (First,), {"name": "bare"}))
        with pytest.raises(TypeError, match=r"derived from tokenreduce\.Reducer"):
            tokenreduce.register(dict)
    finally:
        registry._registry.pop("first")


@pytest.mark.parametrize("method", tokenreduce.methods())
def test_describe_is_complete_and_json(method) -> None:
    facts = tokenreduce.describe(method)
    assert json.loads(json.dumps(facts)) == facts
    assert {"name", "kind", "paper", "year", "needs", "options", "adaptive", "summary"} <= facts.keys()
    assert facts["name"] == method and facts["summary"].endswith(".")


def test_hybrid_embeddings_are_counted() -> None:
    model = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64).eval()
    x = torch.zeros(1, 3, 64, 64)
    whole = tokenreduce.count_flops(model, x).total
    patch(model, "pool", flops=0.9)
    assert tokenreduce.count_flops(model, x).total / whole == pytest.approx(0.9, abs=0.02)
