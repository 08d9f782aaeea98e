"""`divprune` against loops over all pairs."""

from __future__ import annotations

import pytest
import torch
from by_hand import directions_apart, diverse, gaps_of
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


def check(x: torch.Tensor, keep: int, inherit: bool = True, exact: bool = False) -> tokenreduce.TokenMap:
    """`exact`: no rounding, so that of equals the lowest index has to be taken."""
    token_map = tokenreduce.plan(x, "divprune", keep=keep, inherit=inherit)
    found = token_map.rep[0].tolist()
    apart, kept = directions_apart(x[0]), diverse(x[0], keep) if exact else found
    assert found == kept and found == sorted(found) and is_greedy(apart, [], found) and token_map.drops
    for i, m in enumerate(token_map.dest[0].tolist()):
        gaps = [apart[i][j] for j in kept]
        if i in kept or exact:
            assert m == (kept.index(i) if i in kept else gaps.index(min(gaps)))
        assert gaps[m] <= min(gaps) + 1e-5
    assert torch.equal(token_map.apply(x)[0], x[0, kept])
    return token_map


def is_greedy(apart: list[list[float]], kept: list[int], found: list[int]) -> bool:
    """Whether the tokens `found` are chosen from `kept` on, whatever rounding decides between equals."""
    if len(kept) == len(found):
        return True
    gaps = gaps_of(apart, kept)
    best = [i for i, gap in gaps.items() if gap >= max(gaps.values()) - 1e-5 and i in found]
    return any(is_greedy(apart, [*kept, i], found) for i in best)


@given(cases(least=2), st.data(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_matches_the_specification(case, data, inherit) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    token_map = check(case.x, keep, inherit, exact=case.kind in ("ties", "identical"))
    kept, dest = token_map.rep[0].tolist(), token_map.dest[0].tolist()
    assert token_map.sizes(case.sizes)[0].tolist() == pytest.approx(case.inherited(kept, dest, inherit))


@pytest.mark.parametrize("keep", range(1, 24))
def test_every_count_with_copies_among_the_tokens(keep: int) -> None:
    """No token is chosen twice, also where all that are left are copies."""
    x = torch.randn(1, 24, 6, generator=torch.Generator().manual_seed(keep))
    x[0, 5], x[0, 11], x[0, 20] = x[0, 2], x[0, 2], x[0, 7]
    assert len(set(check(x, keep).rep[0].tolist())) == keep


def test_the_length_of_a_token_does_not_matter() -> None:
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(2, 30, 1, generator=torch.Generator().manual_seed(1)) * 10 + 0.1
    first, second = (tokenreduce.plan(tokens, "divprune", keep=9) for tokens in (x, x * lengths))
    assert torch.equal(first.rep, second.rep)
