"""`ward` in state-space models: clusters of directions and places, each where its most central member stands."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import TokenMap
from tokenreduce.maps.places import grid_positions
from tokenreduce.ops.linkage import agglomerate
from tokenreduce.reducers.methods.ward import Ward, costs
from tokenreduce.reducers.parts.labels import map_of_clusters, with_central
from tokenreduce.reducers.tokens import Tokens


def tokens(seed: int, batch: int = 2, side: int = 5, sized: bool = False) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    places = grid_positions((side, side), torch.device("cpu")).expand(batch, -1, -1)
    sizes = torch.randint(1, 5, (batch, side**2), generator=g).float() if sized else None
    found = Tokens(torch.randn(batch, side**2, 12, generator=g), sizes, {"positions": lambda: places}, (side, side))
    found.ordered = True
    return found


@given(st.integers(0, 999), st.integers(1, 25), st.booleans())
@settings(max_examples=60, deadline=None)
def test_is_agglomeration_of_directions_and_places(seed: int, keep: int, sized: bool) -> None:
    shown = tokens(seed, sized=sized)
    found = Ward(width=12).plan(shown, keep)
    unit = shown.features / shown.features.norm(dim=-1, keepdim=True)
    points = torch.cat([unit, 0.2 * shown.positions], -1)
    label = agglomerate(costs(points, shown.sizes), keep, "ward", shown.sizes)
    assert same_clusters(found, map_of_clusters(label, keep))
    for image in range(2):
        for output in range(keep):
            members = [i for i in range(25) if found.dest[image, i] == output]
            mass = torch.ones(25) if shown.sizes is None else shown.sizes[image]
            middle = (shown.positions[image] * mass[:, None])[members].sum(0) / mass[members].sum()
            far = [(shown.positions[image, i] - middle).norm() for i in members]
            rep = int(found.rep[image, output])
            assert rep in members and far[members.index(rep)] <= min(far) + 1e-5
        assert sorted([*found.rep[image].tolist(), *found.sources[image].tolist()]) == [*range(25)]


def test_the_first_of_equally_central_members_stands() -> None:
    places = torch.tensor([[[0.0, 0], [0, 1], [0, 2], [0, 3], [5, 5]]])
    one = with_central(TokenMap(2, dest=torch.tensor([[0, 0, 0, 0, 1]])), places, None)
    assert one.rep.tolist() == [[1, 4]] and one.sources.tolist() == [[0, 2, 3]]
    heavy = with_central(TokenMap(2, dest=torch.tensor([[0, 0, 0, 0, 1]])), places, torch.tensor([[1.0, 1, 1, 9, 1]]))
    assert heavy.rep.tolist() == [[2, 4]], "their middle is at column 2.5, where two are as near"


def test_nearness_keeps_clusters_together() -> None:
    shown = tokens(3)

    def spread(nearness: float) -> float:
        found = Ward(nearness=nearness).plan(shown, 5)
        middle = TokenMap(5, dest=found.dest).apply(shown.positions)
        back = middle.gather(1, found.dest[..., None].expand(-1, -1, 2))
        return float((shown.positions - back).square().sum())

    assert spread(5.0) < spread(0.2) < spread(0.0)


def same_clusters(one: TokenMap, other: TokenMap) -> bool:
    def pairs(found: TokenMap) -> torch.Tensor:
        return found.dest[:, :, None] == found.dest[:, None]

    return torch.equal(pairs(one), pairs(other))
