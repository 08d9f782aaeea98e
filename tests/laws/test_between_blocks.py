"""Law: what happens to tokens between two blocks counts, as it does without a patch, or is refused in words."""

from __future__ import annotations

from collections.abc import Callable

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from changing import after_layer, layers_of, outputs_or_words
from choosing import MAIN, SAMPLE, pairs
from torch import Tensor, nn

import tokenreduce
from tokenreduce import patch, report
from tokenreduce.forward import noted, stack

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_thread", stack._Thread())
    monkeypatch.setattr(noted, "_notes", noted._Notes())


def in_place(x: Tensor) -> Tensor:
    x[:, : x.shape[1] // 2] *= -1
    return x


def of_a_view(x: Tensor) -> Tensor:
    in_place(x.view(x.shape))
    return x.view(x.shape)


def out_of_place(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([-x[:, :half], x[:, half:]], 1)


def collected(backbone: Backbone, model: nn.Module) -> list[Tensor]:
    read = backbone.collect or backbone.outputs
    return [*read(model, backbone.inputs()), *backbone.outputs(model, backbone.inputs())]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pairs(first=("tome",), main=SAMPLE)
def test_edits_in_place_count_as_others_do(backbone: Backbone, method: str, mode: Callable) -> None:

    def found(model: nn.Module, edit: Callable[[Tensor], Tensor]) -> list[Tensor]:
        for index in range(len(layers_of(model)) - 1):
            after_layer(model, index, edit)
        with mode():
            return [tensor.detach() for tensor in collected(backbone, model)]

    unpatched = [found(fresh_model(backbone), edit) for edit in (out_of_place, in_place)]
    if not checks.close(*unpatched, 1e-4):
        return  # what it returns was collected before the hook, and shows edits in place only
    expected, *edited, plain = (
        found(patch(fresh_model(backbone), method, ratio=0.5), edit)
        for edit in (out_of_place, in_place, of_a_view, lambda x: x)
    )
    for outputs in edited:
        assert checks.close(outputs, expected, 1e-4)
    assert not checks.close(plain, expected, 1e-2)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda x: x[: x.shape[0] // 2],
    "twice": lambda x: x.repeat(2, *[1] * (x.ndim - 1)),
}


@pytest.mark.parametrize("change", CHANGES)
@pairs(everywhere=("tome",), main=SAMPLE)
def test_images_that_leave_or_join_are_refused(backbone: Backbone, method: str, change: str) -> None:
    model = patch(fresh_model(backbone), method, ratio=0.5)
    handle = after_layer(model, 0, CHANGES[change])
    words = outputs_or_words(backbone, model, backbone.inputs())
    assert isinstance(words, str) and "none may leave or join between blocks" in words, words
    handle.remove()
    assert isinstance(outputs_or_words(backbone, model, backbone.inputs()), list)


@pytest.mark.parametrize("pick", [lambda z: z[2:3], lambda z: z[:2], lambda z: z.repeat(2, 1, 1), lambda z: z[:, :-5]])
@torch.no_grad()
def test_an_own_loop_over_the_blocks(pick: Callable[[Tensor], Tensor]) -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    z = model.norm_pre(model._pos_embed(model.patch_embed(MAIN.images(4))))
    z = model.blocks[1](model.blocks[0](z))
    with pytest.raises(
        ValueError, match=r"block 2 of a reduced model was given \(.*, but block 1 returned \(4, 65, 32"
    ):
        model.blocks[2](pick(z))
    assert torch.equal(model(MAIN.images()), model(MAIN.images()))


def embedded(model: nn.Module, x: Tensor) -> Tensor:
    return model.norm_pre(model._pos_embed(model.patch_embed(x)))


def through(model: nn.Module, x: Tensor) -> Tensor:
    return model.forward_head(model.norm(model.blocks(x)))


@pytest.mark.parametrize("method", ["pool", "expedit", "dsm", "algm", "gtp", "tome"])
@torch.no_grad()
def test_images_embedded_before_any_of_them_runs(method: str) -> None:
    """Grids with other counts are told apart; with the same count they are refused to methods that read grids."""
    row = BY_NAME["timm_vit_dynamic_size"]
    model = patch(fresh_model(row), method, ratio=0.5)
    images = [torch.randn(2, 3, 4 * h, 4 * w) for h, w in ((4, 8), (8, 4), (6, 6))]
    expected = [through(model, embedded(model, x)) for x in images]
    for pair in ((0, 2), (2, 1), (0, 0)):
        waiting = [embedded(model, images[index]) for index in pair]
        for index, x in zip(pair, waiting, strict=True):
            assert torch.equal(through(model, x), expected[index])
    waiting = [embedded(model, x) for x in images[:2]]
    if method != "tome":
        with pytest.raises(ValueError, match="32 tokens are grids of 4x8 and 8x4 were embedded before any"):
            through(model, waiting[0])
    assert torch.equal(model(images[0]), expected[0]) and torch.equal(model(images[1]), expected[1])


def test_blocks_that_run_in_another_order_say_so() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    blocks, x = model.blocks, embedded(model, MAIN.images())
    y = embedded(model, MAIN.images(seed=1))
    with pytest.raises(ValueError, match="two inputs go through the blocks in turn"):
        a, b = blocks[0](x), blocks[0](y)
        blocks[1](a), blocks[1](b)
    with pytest.raises(ValueError, match=r"block 2 .* right after block 0: block 1 did not run"):
        blocks[2](blocks[0](x))
    with pytest.raises(ValueError, match=r"block 1 .* called again after block 1"):
        blocks[1](blocks[1](blocks[0](x)))
    with pytest.raises(ValueError, match="no block before it has run in this thread"):
        model(MAIN.images())
        blocks[2](x)


def test_only_gradient_checkpointing_is_called_so() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    x = embedded(model, MAIN.images())
    for index, block in enumerate(model.blocks):
        x = block(x) if index != 1 else torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    with pytest.raises(ValueError, match=r"block 1 .* in the backward pass, .*: gradient checkpointing does that"):
        x.sum().backward()


@torch.no_grad()
def test_heads_that_change_say_so() -> None:
    row = BY_NAME["timm_vit"]
    model = patch(fresh_model(row), "tome", ratio=0.5)
    model.reset_classifier(5)
    assert model(row.images()).shape == (2, 5)
    model.reset_classifier(5, global_pool="avg")
    with pytest.raises(ValueError, match="it read protected tokens only then and reads image tokens now; patch it"):
        model(row.images())
    expected = patch(tokenreduce.unpatch(model), "tome", ratio=0.5)(row.images())
    model.reset_classifier(5)
    assert not torch.equal(patch(model, "tome", ratio=0.5, restore=True)(row.images()), expected)
    model.global_pool = "avg"  # restored whatever reads them
    assert model(row.images()).isfinite().all()


@torch.no_grad()
def test_an_attention_that_is_replaced_is_read() -> None:
    for method in ("tome", "evit", "ats"):
        model, other = fresh_model(MAIN), fresh_model(MAIN)
        torch.nn.init.normal_(other.blocks[1].attn.qkv.weight)
        patch(model, method, ratio=0.5).blocks[1].attn = other.blocks[1].attn
        found = model(MAIN.images())
        assert torch.equal(found, patch(tokenreduce.unpatch(model), method, ratio=0.5)(MAIN.images()))
    for budget in ({"ratio": 0.5}, {"flops": 0.7}):
        model = patch(fresh_model(MAIN), "tome", **budget)
        model.blocks[1].attn = nn.Identity()
        with pytest.raises(ValueError, match=r"block 1 was changed after .*its attention is Identity"):
            model(MAIN.images())
    patch(fresh := fresh_model(MAIN), "tome", ratio=0.5)
    for module in fresh.modules():
        module._forward_hooks.clear()
    with pytest.raises(ValueError, match=r"mean_keys is not available here .* patch again"):
        fresh(MAIN.images())


@pytest.mark.parametrize("method", tokenreduce.methods("encoder"))
@torch.no_grad()
def test_images_too_small_for_the_budget_pass_through(method: str) -> None:
    row = BY_NAME["timm_vit_dynamic_size"]
    if not row.fits(method):
        return
    model, plain = fresh_model(row), fresh_model(row)
    patch(model, method, flops=0.85)
    passed = []
    for height, width in ((1, 1), (1, 2), (1, 3), (2, 2), (8, 8)):
        x = torch.randn(1, 3, 4 * height, 4 * width)
        found = model(x)
        shown = report(model)
        passed.append(shown.passed_through)
        if shown.passed_through:
            assert shown.input_tokens == height * width == shown.tokens_left and torch.equal(found, plain(x))
            assert "passed through" in str(shown) and shown.to_json()["passed_through"]
    assert passed[0] and not passed[-1]
