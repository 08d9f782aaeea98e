"""The default of `token_transforming` against a slow reference, and `Flow`, its map, against the whole share matrix."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    powers = {i: math.exp(z - top) for i, z in logits.items()}
    return {i: power / sum(powers.values()) for i, power in powers.items()}


def price_of(case: Case, metric: list[list[float]], i: int, j: int) -> float:
    distance = sum((p - q) ** 2 for p, q in zip(metric[i], metric[j], strict=True))
    return distance * case.mass[i] * case.mass[j] / (case.mass[i] + case.mass[j])


@settings(max_examples=150, deadline=None)
@given(cases(least=2), st.data(), st.sampled_from((None, 1, 2, 3)), st.sampled_from((0.05, 0.5)))
def test_the_default_keeps_what_is_dear_to_merge_and_shares_by_price(case, data, top_t, tau) -> None:
    keep, n = data.draw(st.integers(1, case.n - 1)), case.n
    token_map = tokenreduce.plan(
        case.x, "token_transforming", keep=keep, top_t=top_t, tau=tau, layer=0, depth=12, **case.arguments("keys")
    )
    metric, mass, kept = case.mean_keys.tolist(), case.mass, token_map.rep[0].tolist()
    dear = [
        min(
            (price_of(case, metric, i, j) for i in range(n) if (mass[i], -i) > (mass[j], -j)),
            default=math.inf,
        )
        for j in range(n)
    ]
    scale = max(math.hypot(*row) ** 2 for row in metric) * max(mass)
    gone = [j for j in range(n) if j not in kept]
    assert kept == sorted(kept)
    assert min(dear[j] for j in kept) >= max(dear[j] for j in gone) - 1e-5 * scale
    share = token_map.dense()[0]
    assert torch.allclose(share.sum(0), torch.ones(n), atol=1e-5)
    for j in gone:
        price = {i: price_of(case, metric, i, j) for i in kept}
        least = min(price.values())
        if least <= 1e-3 * scale:
            continue  # rounding decides what a price of nothing is a multiple of
        order = sorted(kept, key=lambda i: price[i])[:top_t]
        wanted = softmax({i: least / price[i] / tau for i in order})
        ranked = sorted(price.values())
        if top_t is not None and len(ranked) > top_t and ranked[top_t] - ranked[top_t - 1] < 1e-3 * scale:
            continue  # a tie for the last place
        for row, i in enumerate(kept):
            assert float(share[row, j]) == pytest.approx(wanted.get(i, 0.0), abs=2e-2)


@settings(max_examples=80, deadline=None)
@given(cases(least=2), st.data(), st.sampled_from((1, 2, 5)), st.sampled_from((1.0, 0.3, 0.0)))
def test_what_moves_alone_gives_what_the_whole_matrix_gives(case, data, top_t, gamma) -> None:
    """`Flow` against the dense encoding: features, sizes, and all that comes back."""
    keep = data.draw(st.integers(1, case.n - 1))
    flow = tokenreduce.plan(
        case.x, "token_transforming", keep=keep, top_t=top_t, gamma=gamma, tau=1.0, **case.arguments("keys")
    )
    whole = tokenreduce.TokenMap(keep, share=flow.dense(), rep=flow.rep, undo=flow.undo_matrix())
    (y, sizes), (expected, grown) = (tokenreduce.apply(m, case.x, case.sizes) for m in (flow, whole))
    assert torch.allclose(y, expected, atol=1e-4) and torch.allclose(sizes, grown, atol=1e-4)
    assert torch.allclose(tokenreduce.restore(flow, y), tokenreduce.restore(whole, y), atol=1e-4)
    assert flow.entered == case.n and flow.batch == 1
