"""Five ways to have all tokens back, against loops; restoring in mid-network."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from kriged import beyond
from torch import Tensor

import tokenreduce
from tokenreduce import InvalidValueError, Schedule, TokenMap, patch, report
from tokenreduce.maps.restoring import MODES, Around, restore_tokens
from tokenreduce.patching.verbs import change_patch

PREFIX, SUFFIX = 2, 1


def integer_map(n: int, m: int, seed: int, with_rep: bool) -> TokenMap:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(2, n, generator=generator).argsort(1)
    dest = torch.randint(m, (2, n), generator=generator).scatter(1, order[:, :m], torch.arange(m).expand(2, -1))
    return TokenMap(m, dest=dest, rep=order[:, :m] if with_rep else None)


def dense_map(n: int, m: int, seed: int) -> TokenMap:
    generator = torch.Generator().manual_seed(seed)
    share, undo = torch.rand(2, m, n, generator=generator), torch.rand(2, n, m, generator=generator)
    return TokenMap(m, share=share / share.sum(1, keepdim=True), undo=undo / undo.sum(2, keepdim=True))


CHAINS = {
    "integer": [integer_map(12, 7, 0, True), integer_map(7, 4, 1, True)],
    "no representatives": [integer_map(12, 7, 2, False)],
    "dense": [dense_map(12, 6, 3)],
    "mixed": [integer_map(12, 7, 4, False), dense_map(7, 5, 5), integer_map(5, 3, 6, True)],
}


def by_hand(mode: str, y: Tensor, token_map: TokenMap, before: Tensor, after: Tensor) -> Tensor:
    """The tokens in front of one map, one by one."""
    middle, m = slice(PREFIX, PREFIX + token_map.count), token_map.count
    image, held, was = y[:, middle], after[:, middle], before[:, PREFIX : before.shape[1] - SUFFIX]
    rows = torch.empty_like(was)
    for b in range(y.shape[0]):
        for i in range(token_map.entered):
            weights = token_map.undo_matrix()[b, i]
            stands = int(weights.argmax())
            if token_map.rep is not None:
                stays = int(token_map.rep[b, stands]) == i
            elif token_map.dest is not None:
                stays = i == min(j for j in range(token_map.entered) if token_map.dest[b, j] == stands)
            else:
                stays = None
            if mode == "copy":
                rows[b, i] = image[b, stands]
            elif mode == "soft":
                rows[b, i] = sum(weights[k] * image[b, k] for k in range(m))
            elif mode in ("delta", "kriging"):
                rows[b, i] = was[b, i] + sum(weights[k] * (image[b, k] - held[b, k]) for k in range(m))
            elif stays is not None:
                rows[b, i] = image[b, stands] if stays else was[b, i]
            else:  # a dense map without names: the token of which an output holds most represents it
                mine = [k for k in range(m) if int(token_map.share[b, k].argmax()) == i]
                rows[b, i] = image[b, mine[-1]] if mine else was[b, i]
    changed = y - after  # protected tokens are those of now, in every mode
    edges = (before[:, :PREFIX] + changed[:, :PREFIX], before[:, -SUFFIX:] + changed[:, -SUFFIX:])
    if mode == "kriging" and token_map.dest is not None:  # maps that mix have no one output for each token
        rows += beyond(image, held, was, token_map.dest)
    if mode not in ("delta", "kriging"):
        edges = (y[:, :PREFIX], y[:, -SUFFIX:])
    return torch.cat([edges[0], rows, edges[1]], 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chain", CHAINS)
def test_every_mode_against_a_loop(mode, chain) -> None:
    maps = CHAINS[chain]
    x = torch.randn(2, PREFIX + 12 + SUFFIX, 5, generator=torch.Generator().manual_seed(7))
    around = []
    for step, token_map in enumerate(maps):
        after = token_map.apply(x, None, PREFIX, SUFFIX)
        around.append(Around(x, after))
        x = after + torch.randn(after.shape, generator=torch.Generator().manual_seed(step))  # what a layer adds
    expected = x
    for token_map, (before, after, _) in zip(reversed(maps), reversed(around), strict=True):
        expected = by_hand(mode, expected, token_map, before, after)
    found = restore_tokens(mode, x, maps, around, PREFIX, SUFFIX)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=6, num_classes=5).eval()


@torch.no_grad()
def test_modes_differ_and_auto_is_the_methods_own(model) -> None:
    x = torch.randn(2, 3, 64, 64)
    maps = {}
    for mode in ("auto", True, "copy", "freeze", "delta", "kriging"):
        patch(model, "tome", ratio=0.5, restore=mode)
        [maps[mode]] = model.forward_intermediates(x, indices=1, intermediates_only=True)
    own = tokenreduce.describe("tome")["restoring"]
    assert torch.equal(maps["auto"], maps[own]) and torch.equal(maps[True], maps[own])
    assert not torch.equal(maps["kriging"], maps["delta"])
    assert not torch.equal(maps["copy"], maps["delta"]) and not torch.equal(maps["copy"], maps["freeze"])


@torch.no_grad()
def test_taps_and_end_restore_in_the_same_way(model) -> None:
    x = torch.randn(2, 3, 64, 64)
    for mode in ("copy", "freeze", "delta", "kriging"):
        patch(model, "tome", ratio=0.5, restore=mode)
        [tapped] = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        restoring = tokenreduce.patching.finding.reduction_of(model).restoring
        change_patch(model, restoring=dataclasses.replace(restoring, ends=True))
        whole = model.forward_features(x)[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        assert torch.allclose(tapped, whole, atol=1e-5)


def test_ways_that_a_method_does_not_have_are_refused(model) -> None:
    with pytest.raises(InvalidValueError, match=r'"auto", "copy", "soft", "delta" \(expedit has no such way\)'):
        patch(model, "expedit", ratio=0.5, restore="freeze")
    with pytest.raises(InvalidValueError, match="tome has no such way"):
        patch(model, "tome", ratio=0.5, restore="soft")
    with pytest.raises(InvalidValueError, match=r'valid: True, False, "auto", "copy", "freeze", "delta", "kriging"$'):
        patch(model, "tome", ratio=0.5, restore="middle")


@torch.no_grad()
def test_all_tokens_come_back_in_mid_network(model) -> None:
    schedule = Schedule.keep({0: 0.5, 1: 8, 4: 0.25}).restore_after(2)
    assert schedule.resolve(16, 6, lambda n: 1) == (8, 8, 8, 16, 4, 4)
    assert Schedule.from_json(schedule.to_json()) == schedule
    patch(model, "kmeans", schedule=schedule)
    counted, handles = [], []
    for block in model.blocks:
        hook = lambda m, args: counted.append(args[0].shape[1] - 1)  # noqa: E731
        handles.append(block.mlp.fc1.register_forward_pre_hook(hook))
    model(torch.randn(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert counted == [8, 8, 8, 16, 4, 4]
    assert report(model).tokens == (8, 8, 8, 16, 4, 4)
    assert [layer for layer, _ in report(model).maps] == [0, 4]
    assert report(model).map.entered == 16 and report(model).map.count == 4


def test_a_budget_pays_for_what_comes_back(model) -> None:
    x = torch.randn(1, 3, 64, 64)
    unpatched = tokenreduce.count_flops(tokenreduce.unpatch(model), x).total
    for goal in (0.9, 0.8):
        patch(model, "expedit", flops=goal, rebuild=3)
        report_ = tokenreduce.report(model)
        assert report_.tokens[4] == report_.tokens[5] == 16 > report_.tokens[3]
        assert abs(tokenreduce.count_flops(model, x).total / unpatched - goal) < 0.02


@torch.no_grad()
def test_the_layer_behind_receives_what_a_tap_shows(model) -> None:
    x = torch.randn(2, 3, 64, 64)
    patch(model, "expedit", schedule=Schedule.keep({1: 4}), rebuild=3)
    [tapped] = model.forward_intermediates(x, indices=[3], intermediates_only=True)
    received = []
    handle = model.blocks[4].norm1.register_forward_pre_hook(lambda m, args: received.append(args[0]))
    model(x)
    handle.remove()
    assert torch.equal(received[0][:, 1:], tapped.flatten(2).transpose(1, 2))


def test_wrong_restore_events(model) -> None:
    for make, message in (
        (lambda: patch(model, "tome", schedule=Schedule.keep({1: 0.5}).restore_after(5)), "restore=True"),
        (lambda: Schedule.keep({1: 0.5}).restore_after(-1), "count from 0"),
        (lambda: patch(model, "expedit", flops=0.8, rebuild=9), "no layer follows"),
        (lambda: patch(model, "expedit", flops=0.8, rebuild="late"), "rebuild"),
        (lambda: patch(model, "expedit", schedule=Schedule.keep({3: 0.5}), rebuild=1), "has nothing to restore"),
    ):
        with pytest.raises((InvalidValueError, tokenreduce.InvalidTypeError), match=message):
            make()
