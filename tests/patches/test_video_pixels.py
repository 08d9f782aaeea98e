"""How the pixels of a video get to a method that asks for them, and that they stay nowhere."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import backbone_checks as checks
import pytest
import torch
from backbones import PATCH, Backbone, fresh_model, new_model
from choosing import every_backbone
from torch import Tensor, nn
from videos import moving

import tokenreduce
from tokenreduce import patch, unpatch
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.noted import _notes
from tokenreduce.forward.stack import _thread
from tokenreduce.reducers.entries import tubelets

of_videos = every_backbone(lambda row: row.videos and row.tokens_stay_reduced)


@of_videos
def test_tubelets_are_what_the_embedding_makes_tokens_of(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    projection = next(m for m in model.modules() if isinstance(m, nn.Conv3d))
    video = torch.randn(2, 3, 18, 17, 16)
    pixels = tubelets(video, projection.kernel_size)
    assert pixels.shape == (2, 4 * 4 * 4, PATCH, 3 * PATCH * PATCH)
    weight = projection.weight.transpose(1, 2).flatten(1)  # frame by frame, as the pixels are
    tokens = projection(video).flatten(2).transpose(1, 2)
    assert torch.allclose(pixels.flatten(2) @ weight.T + projection.bias, tokens, atol=1e-5)


def left_behind(model: nn.Module) -> list:
    """What this thread still holds of forwards of the model."""
    reduction = tokenreduce.patching.finding.reduction_of(model)
    videos = [video for noted, _, video in _notes.videos if noted is reduction]
    return videos + [run for run in _thread.runs if run.reduction is reduction]


class DeliberateError(ArithmeticError):
    pass


def fail(module: nn.Module, args: object) -> None:
    raise DeliberateError


@of_videos
def test_videos_do_not_outlive_their_forward(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    x, y = moving(backbone), moving(backbone, 2, seed=1)
    patch(model, "rlt")
    with torch.no_grad():
        expected, other = backbone.outputs(model, x), backbone.outputs(model, y)
        first = tokenreduce.patching.finding.find_backbone(model)
        first = first[2].layers(first[1])[0]
        for place in (first, first.attention):  # before a run has begun, and within one
            handle = place.register_forward_pre_hook(fail)
            with pytest.raises(DeliberateError):
                backbone.outputs(model, y)
            handle.remove()
            assert checks.same(backbone.outputs(model, x), expected)
            assert left_behind(model) == []
        gone = {"pixel_values": y["pixel_values"].clone()}
        alive = weakref.ref(gone["pixel_values"])
        assert checks.same(backbone.outputs(model, gone), other)
        del gone
        gc.collect()
        assert alive() is None


@of_videos
def test_threads_and_models_in_turns_keep_their_videos_apart(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    patch(model, "rlt", threshold=0.5)
    inputs = [moving(backbone, 1 + seed % 3, seed) for seed in range(4)]
    with torch.no_grad():
        expected = [backbone.outputs(model, x) for x in inputs]
    wrong: list[int] = []

    @torch.no_grad()
    def work(i: int) -> None:
        wrong.extend(i for _ in range(5) if not checks.same(backbone.outputs(model, inputs[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

    twin = copy.deepcopy(model)
    between: list[list[Tensor]] = []
    first = tokenreduce.patching.finding.find_backbone(model)
    first = first[2].layers(first[1])[0]
    handle = first.register_forward_pre_hook(lambda m, args: between.append(backbone.outputs(twin, inputs[1])))
    with torch.no_grad():
        assert checks.same(backbone.outputs(model, inputs[0]), expected[0])
    handle.remove()
    assert checks.same(between[0], expected[1])
    assert checks.same(backbone.outputs(unpatch(twin), inputs[0]), backbone.outputs(unpatch(model), inputs[0]))


@of_videos
def test_videos_embedded_before_either_runs_are_told_apart_or_refused(backbone: Backbone) -> None:
    model = patch(fresh_model(backbone), "rlt", threshold=0.5)
    _, inner, adapter = tokenreduce.patching.finding.find_backbone(model)
    one, other, three = (moving(backbone, batch, seed)["pixel_values"] for batch, seed in ((2, 0), (2, 1), (3, 2)))

    def embed(video: Tensor) -> Tensor:
        masked = {"bool_masked_pos": None} if hasattr(inner.config, "decoder_hidden_size") else {}
        return inner.embeddings(video, **masked)

    def encode(tokens: Tensor) -> Tensor:
        for layer in adapter.layers(inner):
            tokens = layer(tokens)
        return tokens

    with torch.no_grad():
        expected = [encode(embed(video)) for video in (one, other, three)]
        assert not checks.same([expected[0]], [expected[1]])
        first, _, last = embed(one), embed(three), embed(three)
        assert torch.equal(encode(last), expected[2]), "told apart by their number"
        with pytest.raises(InvalidValueError, match="pixels"):
            encode(first)
        for order in ((one, other), (other, one)):
            tokens = [embed(video) for video in order][1]
            with pytest.raises(InvalidValueError, match="several videos were embedded before any of them ran"):
                encode(tokens)
        assert torch.equal(encode(embed(one)), expected[0]), "the next video is not refused"


@of_videos
def test_a_model_is_copied_with_its_way_to_the_pixels(backbone: Backbone) -> None:
    model = patch(new_model(backbone), "rlt")
    twins, x = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))], moving(backbone)
    with torch.no_grad():
        expected = backbone.outputs(model, x)
        assert all(checks.same(backbone.outputs(twin, x), expected) for twin in twins)
        plain = backbone.outputs(unpatch(model), x)
        assert all(checks.same(backbone.outputs(unpatch(twin), x), plain) for twin in twins)


@of_videos
def test_hooks_are_there_for_methods_that_ask_and_go_again(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    projection = next(m for m in model.modules() if isinstance(m, nn.Conv3d))

    def hooks() -> list[str]:
        return [hook.__name__ for hook in projection._forward_hooks.values()]

    patch(model, "centerclip", ratio=0.5)
    assert hooks() == ["capture_grid"]
    patch(model, "rlt")
    assert hooks() == ["capture_grid", "capture_video"]
    unpatch(model)
    assert hooks() == [] and "_tokenreduce" not in vars(projection)
