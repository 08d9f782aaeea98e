"""Properties of `TokenMap`, checked on random maps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenreduce import InvalidTypeError, InvalidValueError, TokenMap
from tokenreduce.maps.token_map import identity, keep_tokens

B, C = 2, 5


@st.composite
def integer_maps(draw, entered: int | None = None, weighted: bool | None = None) -> TokenMap:
    """A random integer map: onto, with a representative for each output or without, conserving or dropping."""
    n = entered or draw(st.integers(1, 12))
    m = draw(st.integers(1, n))
    seed = draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    rep = torch.stack([torch.randperm(n, generator=g)[:m] for _ in range(B)])
    dest = torch.randint(0, m, (B, n), generator=g).scatter(1, rep, torch.arange(m).expand(B, -1))
    weight = None
    if weighted if weighted is not None else draw(st.booleans()):
        weight = torch.randint(0, 2, (B, n), generator=g).float().scatter(1, rep, 1.0)
    return TokenMap(m, dest=dest, weight=weight, rep=rep if draw(st.booleans()) else None)


@st.composite
def dense_maps(draw, entered: int | None = None) -> TokenMap:
    n = entered or draw(st.integers(1, 12))
    m = draw(st.integers(1, n))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = torch.rand(B, m, n, generator=g) + 0.01
    return TokenMap(m, share=share / share.sum(1, keepdim=True))


any_map = st.one_of(integer_maps(), dense_maps())


def features(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, n, C, generator=g), torch.rand(B, n, generator=g) * 4 + 1


def share_of(token_map: TokenMap) -> torch.Tensor:
    """The share matrix, element by element from the definition."""
    if token_map.share is not None:
        return token_map.share
    share = torch.zeros(B, token_map.count, token_map.entered)
    for b in range(B):
        for i in range(token_map.entered):
            share[b, token_map.dest[b, i], i] = 1.0 if token_map.weight is None else token_map.weight[b, i]
    return share


@given(any_map)
def test_apply_and_sizes_follow_the_algebra(token_map) -> None:
    x, s = features(token_map.entered)
    share = share_of(token_map)
    sizes = share @ s[..., None]
    expected = (share * s[:, None]) @ x / sizes
    assert torch.allclose(token_map.apply(x, s), expected, atol=1e-5)
    assert torch.allclose(token_map.sizes(s), sizes[..., 0], atol=1e-5)


@given(any_map)
def test_missing_sizes_are_ones(token_map) -> None:
    x, s = features(token_map.entered)
    ones = torch.ones_like(s)
    assert torch.allclose(token_map.apply(x), token_map.apply(x, ones), atol=1e-6)
    assert torch.allclose(token_map.sizes(), token_map.sizes(ones), atol=1e-6)


@given(st.one_of(integer_maps(weighted=False), dense_maps()))
def test_mass_is_conserved(token_map) -> None:
    _, s = features(token_map.entered)
    assert torch.allclose(token_map.sizes(s).sum(1), s.sum(1), rtol=1e-5)


@given(any_map)
def test_restoring_constants_is_the_identity(token_map) -> None:
    s = features(token_map.entered)[1]
    x = torch.full((B, token_map.entered, C), 1.5)
    assert torch.allclose(token_map.restore(token_map.apply(x, s)), x, atol=1e-5)


@given(integer_maps())
def test_dense_and_integer_encodings_agree(token_map) -> None:
    x, s = features(token_map.entered)
    dense = TokenMap(token_map.count, share=token_map.dense(), undo=token_map.undo_matrix())
    assert torch.equal(token_map.dense(), share_of(token_map))
    assert torch.allclose(dense.apply(x, s), token_map.apply(x, s), atol=1e-5)
    assert torch.allclose(dense.sizes(s), token_map.sizes(s), atol=1e-5)
    y = dense.apply(x, s)
    assert torch.allclose(dense.restore(y), token_map.restore(y), atol=1e-5)


@given(st.data())
def test_compose_is_doing_one_after_the_other(data) -> None:
    first = data.draw(any_map)
    second = data.draw(st.one_of(integer_maps(first.count), dense_maps(first.count)))
    both = first.compose(second)
    x, s = features(first.entered)
    y = second.apply(first.apply(x, s), first.sizes(s))
    assert torch.allclose(both.apply(x, s), y, atol=1e-4)
    assert torch.allclose(both.sizes(s), second.sizes(first.sizes(s)), atol=1e-4)
    assert torch.allclose(both.restore(y), first.restore(second.restore(y)), atol=1e-4)


@given(st.data())
def test_compose_is_associative(data) -> None:
    a = data.draw(any_map)
    b = data.draw(st.one_of(integer_maps(a.count), dense_maps(a.count)))
    c = data.draw(st.one_of(integer_maps(b.count), dense_maps(b.count)))
    left, right = a.compose(b).compose(c), a.compose(b.compose(c))
    assert torch.allclose(left.dense(), right.dense(), atol=1e-5)
    assert torch.allclose(left.undo_matrix(), right.undo_matrix(), atol=1e-5)


@given(integer_maps(), st.integers(0, 3), st.integers(0, 2))
def test_protected_tokens_pass_through(token_map, prefix, suffix) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(B, prefix + token_map.entered + suffix, C, generator=g)
    y = token_map.apply(x, None, prefix, suffix)
    assert torch.equal(y[:, :prefix], x[:, :prefix])
    assert torch.equal(y[:, prefix + token_map.count :], x[:, prefix + token_map.entered :])
    image = x[:, prefix : prefix + token_map.entered]
    assert torch.allclose(y[:, prefix : prefix + token_map.count], token_map.apply(image), atol=1e-6)
    back = token_map.restore(y, prefix, suffix)
    assert torch.equal(back[:, :prefix], x[:, :prefix]) and back.shape == x.shape


def test_gain_and_size_weight_and_no_division() -> None:
    dest, rep = torch.tensor([[0, 0, 1]]), torch.tensor([[0, 2]])
    x, s = torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[1.0, 3.0, 2.0]])
    weighted = TokenMap(
        2, dest=dest, rep=rep, gain=torch.tensor([[2.0, 1.0]]), size_weight=torch.tensor([[1.0, 0.5, 1.0]])
    )
    assert torch.allclose(weighted.apply(x, s), torch.tensor([[[5.0], [5.0]]]))
    assert torch.allclose(weighted.sizes(s), torch.tensor([[2.5, 2.0]]))
    summed = TokenMap(2, dest=dest, rep=rep, divide=False)
    assert torch.allclose(summed.apply(x), torch.tensor([[[4.0], [5.0]]]))


def test_identical_members_merge_to_exactly_themselves() -> None:
    x = torch.randn(1, 1, C).expand(1, 7, C) * 0.1
    token_map = TokenMap(2, dest=torch.tensor([[0, 0, 1, 0, 1, 1, 0]]), rep=torch.tensor([[0, 2]]))
    assert torch.equal(token_map.apply(x, torch.tensor([[1.0, 3, 1, 7, 2, 1, 9]])), x[:, :2])


def test_pruning_map_gathers_and_forgets_mass() -> None:
    kept = torch.tensor([[1, 3]])
    token_map = keep_tokens(kept, torch.tensor([[0, 0, 1, 1]]))
    x = torch.arange(4.0).view(1, 4, 1)
    assert token_map.apply(x).flatten().tolist() == [1, 3]
    assert token_map.sizes().tolist() == [[1, 1]]
    assert token_map.restore(token_map.apply(x)).flatten().tolist() == [1, 1, 3, 3]


def test_half_precision_sums_in_fp32() -> None:
    x = torch.full((1, 600, 1), 1.0).to(torch.bfloat16)
    token_map = TokenMap(1, dest=torch.zeros(1, 600, dtype=torch.long))
    assert token_map.apply(x).dtype == torch.bfloat16
    assert token_map.apply(x).item() == 1.0
    assert token_map.sizes().item() == 600


def test_malformed_maps_are_refused() -> None:
    index = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(InvalidTypeError, match="exactly one of dest"):
        TokenMap(1)
    with pytest.raises(InvalidValueError, match="2 rows but count is 3"):
        TokenMap(3, share=torch.ones(1, 2, 3))
    with pytest.raises(InvalidTypeError, match="needs rep"):
        TokenMap(1, dest=index, drops=True)
    with pytest.raises(InvalidValueError, match="leaves 1 tokens, the next takes 3"):
        TokenMap(1, dest=index).compose(TokenMap(1, dest=index))


def test_identity() -> None:
    x = torch.randn(2, 4, 3)
    assert torch.equal(identity(2, 4).apply(x), x) and torch.equal(identity(2, 4).restore(x), x)


def test_maps_are_compared_by_identity() -> None:
    """Comparing their tensors would have no single answer; a set or a dict of maps holds each object once."""
    one, other = identity(1, 4), identity(1, 4)
    assert one != other and one == one and len({one, other}) == 2
