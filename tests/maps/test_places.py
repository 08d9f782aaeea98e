"""`Places` against loops over the input's tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenreduce import InvalidValueError, TokenMap
from tokenreduce.maps import places as module
from tokenreduce.maps.places import Places, grid_positions
from tokenreduce.maps.token_map import keep_tokens

BATCH, CPU = 2, torch.device("cpu")
BOTH = frozenset({"positions", "origin"})


def random_map(n: int, m: int, seed: int, kind: str) -> TokenMap:
    g = torch.Generator().manual_seed(seed)
    rep = torch.stack([torch.randperm(n, generator=g)[:m] for _ in range(BATCH)])
    dest = torch.randint(m, (BATCH, n), generator=g).scatter(1, rep, torch.arange(m).expand(BATCH, -1))
    if kind == "dropping":
        return keep_tokens(rep, dest)
    if kind == "dense":
        share = torch.rand(BATCH, m, n, generator=g).scatter(2, rep[..., None], 2.0)
        return TokenMap(m, share=share / share.sum(1, keepdim=True), rep=rep)
    weight = torch.rand(BATCH, n, generator=g).scatter(1, rep, 1.0) if kind == "weighted" else None
    return TokenMap(m, dest=dest, weight=weight, rep=rep)


def mean_places(before: Tensor, token_map: TokenMap, sizes: Tensor | None) -> Tensor:
    """Of the tokens in each output, each counted with its size and its share; of dense maps with most of it."""
    out = torch.zeros(BATCH, token_map.count, before.shape[2])
    for b in range(BATCH):
        for m in range(token_map.count):
            total = 0.0
            for i in range(token_map.entered):
                mass = 1.0 if sizes is None else float(sizes[b, i])
                if token_map.dest is None:
                    mine = int(token_map.share[b, :, i].argmax()) == m
                else:
                    mine = int(token_map.dest[b, i]) == m
                    mass *= 1.0 if token_map.weight is None else float(token_map.weight[b, i])
                if mine:
                    out[b, m] += mass * before[b, i]
                    total += mass
            out[b, m] /= max(total, 1e-12)
    return out


@pytest.mark.parametrize("kind", ["merging", "weighted", "dropping", "dense"])
def test_positions_are_means_by_size_and_origins_are_representatives(kind: str) -> None:
    places = Places(12, (3, 4), BOTH)
    positions = torch.tensor([[[i // 4, i % 4] for i in range(12)]] * BATCH).float()
    origin = torch.arange(12).expand(BATCH, -1)
    assert torch.equal(places.positions(BATCH, CPU), positions) and torch.equal(places.origin(BATCH, CPU), origin)
    sizes: Tensor | None = None
    for step, (n, m) in enumerate(((12, 8), (8, 3))):
        token_map = random_map(n, m, step, kind)
        places.follow(token_map, sizes)
        positions = mean_places(positions, token_map, sizes)
        assert token_map.rep is not None
        origin = torch.stack([origin[b][token_map.rep[b]] for b in range(BATCH)])
        sizes = token_map.sizes(sizes)
        assert torch.allclose(places.positions(BATCH, CPU), positions, atol=1e-5)
        assert torch.equal(places.origin(BATCH, CPU), origin)


def test_positions_follow_maps_in_their_order_when_they_are_read_at_last() -> None:
    often, once = (Places(12, (3, 4), BOTH) for _ in range(2))
    for step, (n, m) in enumerate(((12, 8), (8, 5), (5, 3))):
        token_map = random_map(n, m, step, "merging")
        often.follow(token_map, None)
        once.follow(token_map, None)
        expected = often.positions(BATCH, CPU)
    assert torch.equal(once.positions(BATCH, CPU), expected)
    assert torch.equal(once.positions(BATCH, CPU), expected), "each map is followed once"


def test_positions_of_all_tokens_are_the_reader_s_own() -> None:
    expected = Places(12, (3, 4), BOTH).positions(BATCH, CPU).clone()
    Places(12, (3, 4), BOTH).positions(BATCH, CPU).zero_()
    assert torch.equal(Places(12, (3, 4), BOTH).positions(BATCH, CPU), expected)


def test_kept_positions_can_be_used_in_training_and_hold_data(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kept_positions.cache_clear()
    with torch.inference_mode():
        assert not grid_positions((3, 5), CPU).is_inference()
    with FakeTensorMode():
        grid_positions((5, 3), CPU)
    monkeypatch.setattr(module, "capturing", lambda: True)
    grid_positions((5, 3), CPU)
    assert module._kept_positions.cache_info().currsize == 1
    monkeypatch.undo()
    assert type(grid_positions((5, 3), CPU)) is Tensor and grid_positions((5, 3), CPU)[-1].tolist() == [4, 2]


def test_mass_moves_the_mean() -> None:
    places = Places(3, None, BOTH)
    token_map = TokenMap(2, dest=torch.tensor([[0, 1, 0]]), rep=torch.tensor([[0, 1]]))
    places.follow(token_map, torch.tensor([[1.0, 1.0, 3.0]]))
    assert places.positions(1, CPU).tolist() == [[[0.0, 1.5], [0.0, 1.0]]], "a row of three, where there is no grid"
    assert places.origin(1, CPU).tolist() == [[0, 1]]


def test_means_that_a_map_knows_are_taken_and_followed_further() -> None:
    places, middles = Places(4, (2, 2), BOTH), torch.tensor([[[0.5, 7.0], [1.0, 1.0]]])
    before = TokenMap(3, dest=torch.tensor([[0, 1, 0, 2]]), rep=torch.tensor([[0, 1, 3]]))
    knowing = TokenMap(2, dest=torch.tensor([[0, 1, 0]]), rep=torch.tensor([[0, 1]]), middles=middles)
    places.follow(before, None)
    places.follow(knowing, None)
    assert torch.equal(places.positions(1, CPU), middles)
    places.follow(TokenMap(1, dest=torch.tensor([[0, 0]]), rep=torch.tensor([[0]])), torch.tensor([[3.0, 1.0]]))
    assert places.positions(1, CPU).tolist() == [[[0.625, 5.5]]]


def test_only_what_is_read_is_followed() -> None:
    nameless = TokenMap(2, dest=torch.tensor([[0, 1, 0]]))
    for reads, moved in ((frozenset(), False), (frozenset({"positions"}), True)):
        places = Places(3, (1, 3), reads)
        places.follow(nameless, None)
        assert places.origin(1, CPU).tolist() == [[0, 1, 2]]
        assert places.positions(1, CPU).shape == (1, 2 if moved else 3, 2)
    with pytest.raises(InvalidValueError, match=r"must name representatives \(rep\)"):
        Places(3, (1, 3), frozenset({"origin"})).follow(nameless, None)


def test_grids_count_in_raster_order() -> None:
    video = grid_positions((2, 3, 2), CPU)
    assert video.dtype == torch.float32
    assert video.tolist() == [[t, y, x] for t in range(2) for y in range(3) for x in range(2)]
