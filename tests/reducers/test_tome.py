"""`tome` against a slow reference written straight from section 2 of the specification."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenreduce


def reference(
    metric: torch.Tensor, x: torch.Tensor, sizes: torch.Tensor, prefix: int, r: int
) -> tuple[list, list, list]:
    """One image, whole sequence with prefix, token by token: new features, sizes, and the members of each new token."""
    n = len(metric)
    r = min(r, (n - prefix) // 2)
    a = list(range(0, n, 2))
    b = list(range(1, n, 2))
    best = {}
    for i in a:
        scores = [
            float("-inf")
            if i < prefix or j < prefix
            else float(torch.nn.functional.cosine_similarity(metric[i], metric[j], dim=0, eps=1e-6))
            for j in b
        ]
        if b:
            top = max(range(len(b)), key=lambda j: (scores[j], -j))
            best[i] = (scores[top], b[top])
    if r <= 0:
        return list(x), [float(s) for s in sizes], [[i] for i in range(n)]
    order = sorted(best, key=lambda i: (-best[i][0], i))
    sources = order[:r]
    kept = list(range(prefix)) + [i for i in a if i not in sources and i >= prefix] + [j for j in b if j >= prefix]
    groups = {i: [i] for i in kept}
    for i in sources:
        groups[best[i][1]].append(i)
    weight = [sum(float(sizes[i]) for i in g) for g in groups.values()]
    feats = [sum(sizes[i] * x[i] for i in g) / w for g, w in zip(groups.values(), weight, strict=True)]
    return feats, weight, list(groups.values())


@given(
    st.integers(1, 14),
    st.integers(0, 5),
    st.integers(0, 20),
    st.integers(0, 10**6),
    st.sampled_from(["random", "ties", "zeros"]),
)
def test_matches_the_specification(n, prefix, r, seed, kind) -> None:
    g = torch.Generator().manual_seed(seed)
    full = torch.randn(prefix + n, 4, generator=g)
    if kind == "ties":
        full = torch.nn.functional.one_hot(torch.randint(0, 3, (prefix + n,), generator=g), 4).float()
    if kind == "zeros":
        full[torch.rand(prefix + n, generator=g) < 0.4] = 0
    x = torch.randn(prefix + n, 3, generator=g)
    sizes = torch.randint(1, 5, (prefix + n,), generator=g).float()
    sizes[:prefix] = 1
    feats, weight, groups = reference(full, x, sizes, prefix, r)
    keep = n - min(r, n // 2)
    token_map = tokenreduce.plan(
        x[None, prefix:], "tome", keep=keep, keys=full[None, prefix:], sizes=sizes[None, prefix:], prefix=prefix
    )
    y, new_sizes = tokenreduce.apply(token_map, x[None, prefix:], sizes[None, prefix:])
    assert torch.allclose(y[0], torch.stack(feats[prefix:]), atol=1e-5)
    assert torch.allclose(new_sizes[0], torch.tensor(weight[prefix:]))
    for output, members in enumerate(groups[prefix:]):
        assert all(int(token_map.dest[0, i - prefix]) == output for i in members)
    assert tokenreduce.restore(token_map, y).shape == (1, n, 3)


def test_identical_tokens_merge_to_themselves_and_come_back() -> None:
    x = torch.randn(1, 1, 8).expand(2, 10, 8)
    token_map = tokenreduce.plan(x, "tome", keep=5)
    y, sizes = tokenreduce.apply(token_map, x)
    assert torch.equal(tokenreduce.restore(token_map, y), x)
    assert sizes.sum(1).tolist() == [10, 10]


def test_round_trip_keeps_the_mean() -> None:
    x = torch.randn(2, 11, 8)
    token_map = tokenreduce.plan(x, "tome", keep=7, prefix=1)
    y, _ = tokenreduce.apply(token_map, x)
    assert torch.allclose(tokenreduce.restore(token_map, y).mean(1), x.mean(1), atol=1e-6)


def test_metric_option() -> None:
    x, keys = torch.randn(1, 8, 4), torch.randn(1, 8, 4)
    by_keys = tokenreduce.plan(x, "tome", keep=5, keys=keys)
    by_features = tokenreduce.plan(x, "tome", keep=5, keys=keys, metric="features")
    assert torch.equal(by_features.dest, tokenreduce.plan(x, "tome", keep=5).dest)
    assert not torch.equal(by_keys.dest, by_features.dest)
    with pytest.raises(ValueError, match="metric is 'value'; valid: 'keys', 'features'"):
        tokenreduce.plan(x, "tome", keep=5, metric="value")


def test_deit_small_r13_counts_2_70_gmacs() -> None:
    import timm

    model = timm.create_model("deit_small_patch16_224").eval()
    tokenreduce.patch(model, "tome", r=13)
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(2.70e9, rel=0.01)
    assert counted.uncounted == {}
    assert 0 < counted.reducer < 0.02 * counted.model
    assert counted.restore == 0
