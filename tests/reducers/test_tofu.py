"""`tofu` against a slow reference written straight from section 4 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


def groups_of(case: Case, r: int) -> list[list[int]]:
    """Members of each new token, the destination first: ToMe's matching, by position in the whole sequence."""
    sources = [i for i in range(case.n) if (i + case.prefix) % 2 == 0]
    targets = [i for i in range(case.n) if (i + case.prefix) % 2 == 1]
    similarity = {
        i: [float(torch.cosine_similarity(case.mean_keys[i], case.mean_keys[j], dim=0, eps=1e-12)) for j in targets]
        for i in sources
    }
    best = {i: max(range(len(targets)), key=lambda j: (similarity[i][j], -j)) for i in sources}
    chosen = sorted(sources, key=lambda i: (-similarity[i][best[i]], i))[:r]
    groups = {i: [i] for i in [i for i in sources if i not in chosen] + targets}
    for i in sorted(chosen):
        groups[targets[best[i]]].append(i)
    return list(groups.values())


def fused(vectors: list[torch.Tensor], shares: list[float], merge: str) -> torch.Tensor:
    mean = sum(s * v for s, v in zip(shares, vectors, strict=True)) / sum(shares)
    if merge == "mean":
        return mean
    longest = max(math.sqrt(sum(float(c) ** 2 for c in v)) for v in vectors)
    length = math.sqrt(sum(float(c) ** 2 for c in mean))
    return vectors[0] if length <= 1e-6 * longest else mean / length * longest


@given(cases(least=2), st.data(), st.sampled_from(["mlerp", "mean"]), st.booleans(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_matches_the_specification(case, data, merge, weighted, inherit) -> None:
    removed, depth = data.draw(st.integers(1, case.n // 2)), data.draw(st.integers(1, 13))
    layer, switch = data.draw(st.integers(0, depth - 1)), data.draw(st.sampled_from([0, 0.25, 0.5, 1.0]))
    token_map = tokenreduce.plan(
        case.x,
        "tofu",
        keep=case.n - removed,
        layer=layer,
        depth=depth,
        switch=switch,
        merge=merge,
        weighted=weighted,
        inherit=inherit,
        **case.arguments("keys"),
    )
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    groups = groups_of(case, removed)
    for output, members in enumerate(groups):
        assert all(int(token_map.dest[0, i]) == output for i in members)
        size = sum(case.mass[i] for i in members)
        if layer < math.floor(depth * switch):
            members = members[:1]
            size = size if inherit else case.mass[members[0]]
        mass = [case.mass[i] for i in members]
        expected = fused([case.x[0, i] for i in members], mass if weighted else [1.0] * len(members), merge)
        assert torch.allclose(y[0, output], expected, atol=1e-4)
        assert float(sizes[0, output]) == pytest.approx(size)
    assert len(groups) == token_map.count


@pytest.mark.parametrize(("depth", "first_merging"), [(12, 6), (24, 12), (7, 3), (1, 0)])
def test_drops_in_the_first_half_of_the_blocks(depth, first_merging) -> None:
    x = torch.randn(1, 8, 4)
    dropping = [tokenreduce.plan(x, "tofu", keep=5, layer=layer, depth=depth).drops for layer in range(depth)]
    assert dropping == [layer < first_merging for layer in range(depth)]


def test_merged_tokens_have_the_largest_norm_of_their_members() -> None:
    x = torch.tensor([[[4.0, 0.0], [0.0, 2.0]]])
    y, _ = tokenreduce.apply(tokenreduce.plan(x, "tofu", keep=1), x)
    assert torch.allclose(y, torch.tensor([[[4.0, 2.0]]]) * 4 / math.sqrt(20))
    short, _ = tokenreduce.apply(tokenreduce.plan(x, "tofu", keep=1, merge="mean"), x)
    assert torch.allclose(short, torch.tensor([[[2.0, 1.0]]]))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_opposite_tokens_leave_the_destination_alone(scale) -> None:
    x = torch.tensor([[[3.0, 1.0], [-3.0, -1.0], [1.0, 0.0], [1.0, 2.0]]]) * scale
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]])
    token_map = tokenreduce.plan(x, "tofu", keep=3, keys=keys)
    y, sizes = tokenreduce.apply(token_map, x)
    assert torch.equal(y[0], x[0, [2, 1, 3]])
    assert sizes[0].tolist() == [1, 2, 1]


@pytest.mark.parametrize("layer", [0, 3])
def test_identical_tokens_stay_exactly_and_come_back(layer) -> None:
    x = torch.randn(1, 1, 8).expand(2, 10, 8)
    token_map = tokenreduce.plan(x, "tofu", keep=5, layer=layer, depth=4)
    y, sizes = tokenreduce.apply(token_map, x)
    assert torch.equal(tokenreduce.restore(token_map, y), x)
    assert sizes.sum(1).tolist() == [10, 10]
    lost = tokenreduce.plan(x, "tofu", keep=5, layer=layer, depth=4, inherit=False).sizes()
    assert lost.sum(1).tolist() == ([5, 5] if layer == 0 else [10, 10])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.2e-2)])
def test_norms_are_kept_in_half_precision(dtype, tolerance) -> None:
    x = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    half, exact = tokenreduce.plan(x, "tofu", keep=16), tokenreduce.plan(x.float(), "tofu", keep=16)
    assert torch.allclose(half.gain, exact.gain)
    assert (half.apply(x).float() - exact.apply(x.float())).abs().max() <= tolerance * float(x.abs().max())


def test_options_are_checked() -> None:
    x = torch.randn(1, 8, 4)
    with pytest.raises(ValueError, match=r"option switch is 2; it must lie in \[0, 1\]"):
        tokenreduce.plan(x, "tofu", keep=5, switch=2)
    with pytest.raises(ValueError, match="switch is nan"):
        tokenreduce.plan(x, "tofu", keep=5, switch=math.nan)
    with pytest.raises(TypeError, match="switch is True; it must be a number"):
        tokenreduce.plan(x, "tofu", keep=5, switch=True)


def test_vit_base_r16_counts_8_78_gmacs() -> None:
    import timm

    model = timm.create_model("vit_base_patch16_224").eval()
    tokenreduce.patch(model, "tofu", r=16)
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(8.78e9, rel=0.01)
