"""`random` and `pool`."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from hypothesis import given
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.methods.pool import partition


def test_random_is_seeded_per_layer_and_uniform() -> None:
    x = torch.arange(50.0).view(1, 50, 1)

    def kept(**options) -> list[float]:
        return tokenreduce.apply(tokenreduce.plan(x, "random", keep=20, **options), x)[0].flatten().tolist()

    assert kept() == kept() == sorted(kept()) and len(set(kept())) == 20
    assert kept(seed=1) != kept() and kept(layer=3) != kept()
    hits = torch.zeros(50)
    for seed in range(400):
        hits[torch.tensor(kept(seed=seed)).long()] += 1
    assert (hits - 160).abs().max() < 5 * (400 * 0.4 * 0.6) ** 0.5


def test_random_restores_from_the_token_before() -> None:
    x = torch.arange(30.0).view(1, 30, 1)
    token_map = tokenreduce.plan(x, "random", keep=11)
    y, _ = tokenreduce.apply(token_map, x)
    kept = y.flatten().tolist()
    restored = tokenreduce.restore(token_map, y).flatten().tolist()
    assert restored == [max([k for k in kept if k <= i], default=kept[0]) for i in range(30)]


def test_pool_of_all_cells_is_average_pooling() -> None:
    x = torch.randn(2, 48, 5)
    y, sizes = tokenreduce.apply(tokenreduce.plan(x, "pool", keep=12, grid=(6, 8)), x)
    image = x.transpose(1, 2).view(2, 5, 6, 8)
    assert torch.allclose(y, torch.nn.functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2), atol=1e-6)
    assert (sizes == 4).all()


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_partitions_are_nested_and_have_every_count(height, width, data) -> None:
    count = data.draw(st.integers(1, height * width))
    labels = partition(height, width, count)
    assert set(labels) == set(range(count))
    if count > 1:
        coarser = partition(height, width, count - 1)
        assert len(set(zip(labels, coarser, strict=True))) == count, "a finer cell lies in one coarser cell"
    if count >= -(-height // 2) * -(-width // 2):
        cells = {}
        for i, label in enumerate(labels):
            cells.setdefault(label, set()).add((i // width // 2, i % width // 2))
        assert all(len(members) == 1 for members in cells.values()), (
            "nothing is pooled across 2 x 2 cells before all are done"
        )


def test_partial_pooling_is_spread_over_the_image() -> None:
    labels = torch.tensor(partition(14, 14, 196 - 3 * 24)).view(14, 14)
    pooled = torch.zeros(7, 7)
    for y in range(7):
        for x in range(7):
            pooled[y, x] = len(labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].unique()) == 1
    quarters = [pooled[:4, :4].mean(), pooled[:4, 3:].mean(), pooled[3:, :4].mean(), pooled[3:, 3:].mean()]
    assert pooled.sum() == 24 and max(quarters) - min(quarters) < 0.25


def test_pool_in_several_layers_and_without_a_grid() -> None:
    model, x = fresh_model(BY_NAME["timm_vit_not_square"]), BY_NAME["timm_vit_not_square"].images()
    tokenreduce.patch(model, "pool", schedule=tokenreduce.Schedule.keep({0: 0.5, 1: 0.5, 3: 0.5}))
    model(x)
    assert tokenreduce.report(model).tokens == (30, 15, 15, 7)
    composed = tokenreduce.report(model).map.dest[0].tolist()
    assert tuple(composed) == partition(6, 10, 7)
    with pytest.raises(ValueError, match="pool needs grid"):
        tokenreduce.plan(torch.randn(1, 6, 2), "pool", keep=3)
