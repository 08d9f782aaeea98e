"""`diffrate` against a slow reference written straight from section 9 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


def reference(
    case: Case, keep: int, pruned: int, inherit: bool
) -> tuple[list[torch.Tensor], list[float], dict[int, int]]:
    """New features, their sizes, and the output of every token."""
    order = sorted(range(case.n), key=lambda i: (-float(case.class_attention[0, i]), i))
    unit = [v / max(float(v.norm()), 1e-6) for v in case.x[0]]
    outputs = {i: rank for rank, i in enumerate(order[:keep])}
    members: list[list[int]] = [[i] for i in order[:keep]]
    sizes = [case.mass[i] for i in order[:keep]]
    for place, i in enumerate(order[keep:], keep):
        cosine = [float((unit[i] * unit[j]).sum()) for j in order[:keep]]
        best = max(range(keep), key=lambda rank: (cosine[rank], -rank))
        outputs[i] = best
        if place < case.n - pruned:
            members[best].append(i)
            sizes[best] += case.mass[i] * cosine[best]
        elif inherit:
            sizes[best] += case.mass[i]
    features = [sum(case.x[0, i] for i in group) / len(group) for group in members]
    return features, [max(s, 1.0) for s in sizes], outputs


@given(cases(least=2), st.data(), st.sampled_from([0, 0.25, 0.5, 0.9, 1]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_matches_the_specification(case, data, prune, inherit) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    given = case.arguments("class_attention") | {"prune": prune, "inherit": inherit}
    token_map = tokenreduce.plan(case.x, "diffrate", keep=keep, **given)
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    features, expected, outputs = reference(case, keep, math.floor(prune * (case.n - keep) + 1e-9), inherit)
    assert token_map.dest[0].tolist() == [outputs[i] for i in range(case.n)]
    assert torch.allclose(y[0], torch.stack(features), atol=1e-5)
    assert torch.allclose(sizes[0], torch.tensor(expected), atol=1e-5)
    assert tokenreduce.restore(token_map, y).shape == case.x.shape


def test_prunes_the_least_attended_and_merges_the_next() -> None:
    x = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 9.0]]])
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    for options, means, grown in (
        ({"prune": 0.5}, [[3.0, 0.0], [0.0, 2.0]], [2, 2]),
        ({"prune": 0.5, "inherit": False}, [[3.0, 0.0], [0.0, 2.0]], [2, 1]),
        ({}, [[3.0, 0.0], [0.0, 5.5]], [2, 2]),
    ):
        token_map = tokenreduce.plan(x, "diffrate", keep=2, class_attention=attention, **options)
        y, sizes = tokenreduce.apply(token_map, x)
        assert y[0].tolist() == means and sizes[0].tolist() == grown
        assert token_map.dest[0].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("size", [1.0, 2.0, 5.0])
def test_poor_matches_count_less_and_sizes_stay_at_least_one(size) -> None:
    x = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]]])
    attention, sizes = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[size, 2.0, 3.0]])
    arguments = {"class_attention": attention, "sizes": sizes, "prune": 0}
    good = tokenreduce.plan(
        x[:, :2], "diffrate", keep=1, **arguments | {"class_attention": attention[:, :2], "sizes": sizes[:, :2]}
    )
    assert float(good.sizes(sizes[:, :2])) == pytest.approx(size + 2 * 0.6)
    bad = tokenreduce.plan(x, "diffrate", keep=1, **arguments)
    assert float(bad.sizes(sizes)) == pytest.approx(max(1, size + 1.2 - 3))


def test_the_mean_is_plain_whatever_the_sizes() -> None:
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    attention, sizes = torch.tensor([[0.6, 0.4]]), torch.tensor([[1.0, 7.0]])
    token_map = tokenreduce.plan(x, "diffrate", keep=1, class_attention=attention, sizes=sizes)
    y, grown = tokenreduce.apply(token_map, x, sizes)
    assert y.flatten().tolist() == [2, 0] and grown.tolist() == [[8]]


def test_identical_tokens_stay_exactly_and_come_back() -> None:
    x = torch.randn(1, 1, 8).expand(2, 300, 8)
    token_map = tokenreduce.plan(x, "diffrate", keep=90, class_attention=torch.full((2, 300), 0.1))
    assert token_map.rep.tolist() == [list(range(90))] * 2, "ties go to the lower index"
    assert torch.equal(tokenreduce.restore(token_map, tokenreduce.apply(token_map, x)[0]), x)


def test_the_first_quarter_of_the_blocks_is_left_alone_and_nothing_is_dropped() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    counts = tokenreduce.report(tokenreduce.patch(model, "diffrate", flops=0.7)).tokens
    assert counts[:3] == (16,) * 3 and counts[3] < 16
    assert tokenreduce.describe("diffrate")["options"] == {"prune": 0.0, "inherit": True}


def test_options_are_checked() -> None:
    x, attention = torch.randn(1, 8, 4), torch.rand(1, 8)
    with pytest.raises(ValueError, match=r"prune is -0.5; it must lie in \[0, 1\]"):
        tokenreduce.plan(x, "diffrate", keep=5, class_attention=attention, prune=-0.5)
    with pytest.raises(ValueError, match="diffrate needs class_attention"):
        tokenreduce.plan(x, "diffrate", keep=5)


# The tables of the paper: tokens left after each block of DeiT, the class token among them.
TABLES = {
    "deit_small_patch16_224": ((197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3), 2.9e9),
    "deit_base_patch16_224": ((197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3), 11.5e9),
}


@pytest.mark.parametrize("name", TABLES)
def test_published_tables_count_their_gmacs(name) -> None:
    import timm

    left, macs = TABLES[name]
    model = timm.create_model(name).eval()
    events = {layer: count - 1 for layer, count in enumerate(left)}
    tokenreduce.patch(model, "diffrate", schedule=tokenreduce.Schedule.keep(events))
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(macs, rel=0.01)
    assert tokenreduce.report(model).tokens[-1] == 2
