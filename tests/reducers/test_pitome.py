"""`pitome` against a slow reference written straight from section 5 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce

PROSE = {"mode": "protect", "form": "paper", "margin": 0.9}  # what the paper says; the defaults are the released code's


def cosines(metric: torch.Tensor) -> list[list[float]]:
    unit = [v / max(float(v.norm()), 1e-6) for v in metric]
    own = [round(float((a * a).sum())) for a in unit]
    return [[float((a * b).sum()) if i != j else own[i] for j, b in enumerate(unit)] for i, a in enumerate(unit)]


def energy(row: list[float], form: str, margin: float, alpha: float) -> float:
    out = []
    for c in row:
        below = alpha * (math.exp(c - margin) - 1)
        out.append(below if c < margin else c if form == "paper" else c - margin)
    return math.fsum(out) / len(out)


def by_energy(c: list[list[float]], form: str, margin: float, alpha: float) -> list[int]:
    energies = [round(energy(row, form, margin, alpha), 12) for row in c]
    return sorted(range(len(c)), key=lambda i: (-energies[i], i))


def match(c: list[list[float]], sources: list[int], targets: list[int]) -> dict[int, int]:
    return {a: targets[max(range(len(targets)), key=lambda j: (c[a][targets[j]], -j))] for a in sources}


def groups_of(c: list[list[float]], order: list[int], k: int, protects: bool) -> list[list[int]]:
    """Members of each new token, its representative first."""
    if protects:
        mergeable, aside = order[: 2 * k], order[2 * k :]
        sources, targets = mergeable[::2], mergeable[1::2]
        matched = match(c, sources, targets)
    else:
        sources, targets = order[::2], order[1::2]
        matched = match(c, sources, targets)
        best = sorted(sources, key=lambda a: (-c[a][matched[a]], sources.index(a)))
        aside = [a for a in sources if a not in best[:k]]
        sources = best[:k]
    groups = {i: [i] for i in aside + targets}
    for a in sources:
        groups[matched[a]].append(a)
    return list(groups.values())


def protected_here(mode: str, layer: int, depth: int) -> bool:
    if mode == "protect":
        return True
    first = range(math.ceil(depth / 2))
    return layer not in first if mode == "deit" else layer in first


def check(case: Case, token_map: tokenreduce.TokenMap, groups: list[list[int]]) -> None:
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert len(groups) == token_map.count
    for output, members in enumerate(groups):
        assert all(int(token_map.dest[0, i]) == output for i in members)
        assert int(token_map.rep[0, output]) == members[0]
        mass = sum(case.mass[i] for i in members)
        expected = sum(case.mass[i] * case.x[0, i] for i in members) / mass
        assert torch.allclose(y[0, output], expected, atol=1e-5)
        assert float(sizes[0, output]) == pytest.approx(mass)


@given(cases(least=2), st.data(), st.sampled_from(["paper", "code"]), st.sampled_from(["protect", "deit", "mae"]))
@settings(max_examples=150, deadline=None)
def test_matches_the_specification(case, data, form, mode) -> None:
    k, depth = data.draw(st.integers(1, case.n // 2)), data.draw(st.integers(1, 5))
    layer = data.draw(st.integers(0, depth - 1))
    margin, alpha = data.draw(st.sampled_from([0.9, 0.75, 0.3, 0])), data.draw(st.sampled_from([1.0, 0.5, 0]))
    token_map = tokenreduce.plan(
        case.x,
        "pitome",
        keep=case.n - k,
        layer=layer,
        depth=depth,
        form=form,
        mode=mode,
        margin=margin,
        alpha=alpha,
        **case.arguments("keys"),
    )
    c = cosines(case.mean_keys)
    order = by_energy(c, form, margin * (1 - layer / depth), alpha)
    check(case, token_map, groups_of(c, order, k, protected_here(mode, layer, depth)))


@given(cases(least=2), st.data())
@settings(max_examples=30, deadline=None)
def test_features_as_metric(case, data) -> None:
    k = data.draw(st.integers(1, case.n // 2))
    token_map = tokenreduce.plan(case.x, "pitome", keep=case.n - k, metric="features", **case.arguments("keys"))
    c = cosines(case.x[0])
    check(case, token_map, groups_of(c, by_energy(c, "code", 0.75, 1.0), k, False))


def test_duplicates_merge_and_what_is_unique_is_protected() -> None:
    x = torch.eye(8)[[0, 1, 0, 2, 0, 3, 0, 4]][None]
    token_map = tokenreduce.plan(x, "pitome", keep=6, mode="protect")
    y, sizes = tokenreduce.apply(token_map, x)
    assert torch.equal(tokenreduce.restore(token_map, y), x)
    assert sorted(sizes[0].tolist()) == [1, 1, 1, 1, 1, 3]
    assert token_map.rep[0].tolist() == [1, 3, 5, 7, 2, 6]


def test_equal_energies_go_to_the_lower_index_whatever_the_order_of_summation() -> None:
    """Tokens of seven kinds, 28 each: all energies are the same sum, of numbers that are not exact, in other orders."""
    kinds = torch.randperm(196, generator=torch.Generator().manual_seed(0)) % 7
    token_map = tokenreduce.plan(torch.eye(7)[kinds][None], "pitome", keep=150, mode="protect")
    assert token_map.rep[0, :104].tolist() == list(range(92, 196))


def test_the_margin_shrinks_with_the_layer() -> None:
    """Near-duplicates at cosine 0.8 count as such only where the margin is below; exact ones do everywhere."""
    near = torch.tensor([0.8, 0.6, 0, 0, 0, 0])
    x = torch.eye(6)[[0, 0, 0, 2, 2, 3]]
    x[1:3], x[3:] = near, torch.eye(6)[[4, 4, 5]]
    first, last = (tokenreduce.plan(x[None], "pitome", keep=5, layer=layer, depth=4, **PROSE) for layer in (0, 3))
    c = cosines(x)
    for token_map, margin in ((first, 0.9), (last, 0.225)):
        order = by_energy(c, "paper", margin, 1.0)
        assert set(order[:2]) == set(range(6)) - set(token_map.rep[0, :4].tolist())
    assert first.rep[0].tolist() != last.rep[0].tolist()


def test_the_defaults_are_the_released_setting_for_deit() -> None:
    x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0))
    released = {"mode": "deit", "form": "code", "margin": 0.75, "alpha": 1.0, "metric": "keys"}
    assert tokenreduce.describe("pitome")["options"] == released
    for layer, same in ((5, False), (6, True)):
        ours, protecting = (
            tokenreduce.plan(x, "pitome", keep=30, layer=layer, depth=12, **options).rep
            for options in ({}, {"mode": "protect"})
        )
        assert torch.equal(ours, protecting) == same, "blocks 0 to 5 of 12 match all tokens, 6 to 11 protect"


def test_options_are_checked() -> None:
    x = torch.randn(1, 8, 4)
    with pytest.raises(ValueError, match="form is 'text'; valid: 'paper', 'code'"):
        tokenreduce.plan(x, "pitome", keep=5, form="text")
    with pytest.raises(ValueError, match=r"margin is 1.5; it must lie in \[0, 1\]"):
        tokenreduce.plan(x, "pitome", keep=5, margin=1.5)
    with pytest.raises(ValueError, match="alpha is -1; it must be finite and at least 0"):
        tokenreduce.plan(x, "pitome", keep=5, alpha=-1)
    with pytest.raises(ValueError, match="can leave 4 to 8 of 8 tokens, not 3"):
        tokenreduce.plan(x, "pitome", keep=3)


def test_deit_small_at_keep_ratio_0_925_counts_2_99_gmacs() -> None:
    import timm

    model = timm.create_model("deit_small_patch16_224").eval()
    n, counts = 196, []
    for _ in range(12):
        n -= math.floor(n - 0.925 * n)
        counts.append(n)
    assert counts[-1] + 1 == 82
    tokenreduce.patch(model, "pitome", schedule=tokenreduce.Schedule.keep(dict(enumerate(counts))))
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(2.99e9, rel=0.01)
    assert 8e6 < counted.reducer < 40e6, "15 MMACs for the similarities, by the specification"
