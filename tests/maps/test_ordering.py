"""`in_order`: the same map, its outputs in the order of the tokens that represent them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenreduce import TokenMap
from tokenreduce.maps.ordering import in_order
from tokenreduce.maps.token_map import keep_tokens

B, N, M, C = 3, 11, 6, 4


def any_map(kind: str, **fields: Any) -> TokenMap:
    """A map whose outputs stand in no order."""
    g = torch.Generator().manual_seed(0)
    rep = torch.stack([torch.randperm(N, generator=g)[:M] for _ in range(B)])
    dest = torch.randint(M, (B, N), generator=g).scatter(1, rep, torch.arange(M).expand(B, -1))
    if kind == "pruning":
        return keep_tokens(rep, dest, inherit=True)
    if kind == "dense":
        share = torch.rand(B, M, N, generator=g)
        undo = torch.rand(B, N, M, generator=g)
        return TokenMap(M, share=share, undo=undo / undo.sum(2, keepdim=True), **fields)
    named = {} if kind == "unnamed" else {"rep": rep}
    weight = torch.rand(B, N, generator=g).scatter(1, rep, 1.0) if kind == "weighted" else None
    gain = None if kind == "means" else torch.rand(B, M, generator=g)
    return TokenMap(M, dest=dest, weight=weight, gain=gain, **named, **fields)


@pytest.mark.parametrize("kind", ["means", "merging", "weighted", "unnamed", "pruning", "dense"])
def test_only_the_order_is_another(kind: str) -> None:
    given = any_map(kind)
    made, rep = in_order(given), given.representatives()
    order = rep.argsort(dim=1, stable=True)
    assert torch.equal(made.rep, rep.sort(1).values) and (made.count, made.entered) == (M, N)
    g = torch.Generator().manual_seed(1)
    x, sizes = torch.randn(B, 1 + N, C, generator=g), torch.rand(B, N, generator=g) + 0.5
    y, expected = made.apply(x, sizes, 1), given.apply(x, sizes, 1)
    assert torch.equal(y[:, :1], x[:, :1])
    torch.testing.assert_close(y[:, 1:], expected[:, 1:].gather(1, order[..., None].expand(-1, -1, C)))
    torch.testing.assert_close(made.sizes(sizes), given.sizes(sizes).gather(1, order))
    torch.testing.assert_close(made.restore(y, 1), given.restore(expected, 1))
    torch.testing.assert_close(made.undo_matrix(), given.undo_matrix().gather(2, order[:, None].expand(-1, N, -1)))


def test_dropping_restores_to_the_bit() -> None:
    given = any_map("pruning")
    x = torch.randn(B, N, C, generator=torch.Generator().manual_seed(2))
    assert torch.equal(in_order(given).restore(in_order(given).apply(x)), given.restore(given.apply(x)))


def test_outputs_of_one_token_stay_side_by_side() -> None:
    share = torch.tensor([[[0.1, 0.0, 0.9], [0.0, 0.9, 0.1], [0.2, 0.1, 0.7]]])
    made = in_order(TokenMap(3, share=share))
    assert made.rep.tolist() == [[1, 2, 2]]
    assert torch.equal(made.dense(), share[:, [1, 0, 2]])


def test_what_ascends_is_left_as_it_is() -> None:
    made = in_order(any_map("merging"))
    assert in_order(made) is made


@pytest.mark.parametrize("fields", [{"divide": False}, {"grid": (2, 3)}, {"drops": True}], ids=str)
def test_what_else_is_known_stays(fields: dict[str, Any]) -> None:
    made = in_order(any_map("merging", **fields))
    assert [getattr(made, name) for name in fields] == [*fields.values()]
