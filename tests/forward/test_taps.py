"""`Taps`: what a hook changes on collected tokens goes on, each place's change to the token that stands for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, fresh_model
from patches_by_hand import BATCH, COUNT, dropping_map, merging_map, tokens
from torch import Tensor

from tokenreduce import Schedule, TokenMap, patch, report, unpatch
from tokenreduce.forward.taps import Taps


def dense_map(n: int, m: int) -> TokenMap:
    share = torch.rand(BATCH, m, n, generator=torch.Generator().manual_seed(5))
    return TokenMap(m, share=share / share.sum(1, keepdim=True))


CHAINS = {
    "none": [],
    "merging": [merging_map(12, 5, 0)],
    "dropping": [dropping_map(12, 5, 1)],
    "two": [merging_map(12, 8, 2), merging_map(8, 3, 3)],
    "mixed": [dropping_map(12, 9, 4), dense_map(9, 6), merging_map(6, 4, 5)],
}


def places_of(maps: list[TokenMap], image: int) -> list[int]:
    """The token that stands for each place of the input in the end."""
    stands = list(range(COUNT))
    for token_map in maps:
        dest = token_map.dest if token_map.dest is not None else token_map.share.argmax(1)
        stands = [int(dest[image, at]) for at in stands]
    return stands


@pytest.mark.parametrize("maps", CHAINS.values(), ids=CHAINS)
def test_a_change_goes_to_the_tokens_that_stand_for_its_places(maps) -> None:
    left = maps[-1].count if maps else COUNT
    everything, reduced, change = tokens(0), tokens(1, left), tokens(2)
    taps = Taps(frozenset({1}))
    assert taps.hand_out(everything, reduced) is everything
    waiting = taps.stop_waiting()
    assert waiting is reduced
    found = taps.take_back(waiting, everything + change, maps, 2, 1)
    expected = reduced.clone()
    expected[:, :2] += change[:, :2]
    expected[:, -1] += change[:, -1]
    for b in range(BATCH):
        stands = places_of(maps, b)
        for m in range(left):
            mine = [change[b, 2 + place] for place in range(COUNT) if stands[place] == m]
            if mine:
                expected[b, 2 + m] += torch.stack(mine).mean(0)
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_nobody_changed_comes_back_as_it_was() -> None:
    taps, everything, reduced = Taps(frozenset({0, 2})), tokens(), tokens(1, 5)
    assert taps.layers == {0, 2} and taps.waiting is None
    assert taps.stop_waiting() is None
    taps.hand_out(everything, reduced)
    assert taps.take_back(reduced, everything, [merging_map(12, 5, 0)], 2, 1) is reduced
    assert taps.waiting is reduced, "only stop_waiting takes them"
    assert taps.stop_waiting() is reduced and taps.stop_waiting() is None


def test_something_can_be_added_to_what_waits() -> None:
    taps, reduced, added = Taps(), tokens(1, 5), tokens(2, 5)
    assert taps.layers == frozenset()
    taps.hand_out(tokens(), reduced)
    taps.add(added)
    assert torch.equal(taps.stop_waiting(), reduced + added)


def test_a_layer_that_returns_another_shape_is_recognised() -> None:
    taps, everything, reduced = Taps(), tokens(), tokens(1, 5)
    shown = everything.flatten(1)
    assert taps.returns(shown) is shown
    assert taps.tokens_of(shown) is None, "nothing waits"
    taps.hand_out(everything, reduced)
    assert taps.tokens_of(shown) is everything
    assert taps.tokens_of(shown.clone()) is None, "a hook replaced it"
    taps.stop_waiting()
    assert taps.tokens_of(shown) is None


def add(change: Tensor, module: Any, args: Any, output: Any) -> Any:
    return output + change.view(output.shape)


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov3", "hf_vit_model", "timm_sam_in_a_row"])
@torch.no_grad()
def test_a_hook_on_a_collected_layer_changes_the_next(name: str) -> None:
    """Layers that change nothing, tokens reduced once: what is collected after a hook is the change, merged."""
    backbone = BY_NAME[name]
    assert backbone.collect is not None
    model, inputs = checks.silenced(fresh_model(backbone), backbone), backbone.inputs(BATCH)
    plain = backbone.collect(model, inputs)[-1]
    changed = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.pad(changed, (0, 0, backbone.prefix, 0))
    patch(model, "tome", schedule=Schedule.keep({1: 40}), restore="copy", prop_attn=False)
    layers = [m for m in model.modules() if hasattr(m, "_tokenreduce") and m._tokenreduce.layer == 2]
    layers[0].register_forward_hook(partial(add, whole))
    maps, token_map = backbone.collect(model, inputs), report(model).map
    assert checks.close([maps[3]], [token_map.restore(token_map.apply(plain + changed))], 1e-5)
    unpatch(model)
