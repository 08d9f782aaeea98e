"""Positions that are added between the layers follow the tokens."""

from __future__ import annotations

import pytest
import torch
from backbone_checks import silenced
from backbones import BY_NAME, fresh_model
from torch import nn
from transformers import YolosConfig, YolosModel

import tokenreduce
from tokenreduce import Schedule, patch, report

BACKBONE = BY_NAME["hf_yolos_model"]


def only_positions() -> nn.Module:
    """A model whose layers add nothing, so that only positions change tokens."""
    model = fresh_model(BACKBONE)
    table = model.encoder.interpolation.mid_position_embeddings.detach().clone()
    silenced(model, BACKBONE)
    with torch.no_grad():
        model.encoder.interpolation.mid_position_embeddings.copy_(table)
    return model


@torch.no_grad()
def test_a_token_gets_the_positions_of_its_representative() -> None:
    model, inputs = only_positions(), BACKBONE.inputs()
    model.layernorm = nn.Identity()
    first = model.embeddings(inputs["pixel_values"])
    added = model.encoder.interpolation((32, 32))[:, 0]  # after layers 0, 1 and 2
    patch(model, "tome", schedule=Schedule.keep({1: 40, 2: 25}), restore=False)
    last = model(**inputs).last_hidden_state
    ((_, one), (_, two)) = report(model).maps
    x = one.apply((first + added[0])[:, 1:-3])
    x = x + added[1, 1:-3][one.rep]
    x = two.apply(x, one.sizes(None)) + added[2, 1:-3][one.rep.gather(1, two.rep)]
    assert torch.allclose(last[:, 1:-3], x, atol=1e-5)
    protected = first[:, [0, -3, -2, -1]] + added.sum(0)[[0, -3, -2, -1]]
    assert torch.allclose(last[:, [0, -3, -2, -1]], protected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", ["tome", "evit", "ward"])
def test_collecting_hidden_states_changes_nothing(method: str) -> None:
    model, inputs = fresh_model(BACKBONE), BACKBONE.inputs()
    for restore in (True, "auto"):
        patch(model, method, ratio=0.5, restore=restore)
        alone, collected = (model(**inputs, **more).pooler_output for more in ({}, {"output_hidden_states": True}))
        assert torch.allclose(collected, alone, atol=1e-6)


def test_the_limit_exists_only_without_positions_between_the_layers() -> None:
    model = fresh_model(BACKBONE)
    counts = (32,) * 4
    _, backbone, adapter = tokenreduce.patching.finding.find_backbone(model)
    with pytest.raises(ValueError, match="between the layers"), adapter.sliced(backbone, counts, "mid"):
        pass
    config = YolosConfig(**model.config.to_dict() | {"use_mid_position_embeddings": False})
    plain = YolosModel(config).eval()
    with torch.no_grad(), adapter.sliced(plain, counts, "mid"):
        assert plain(**BACKBONE.inputs()).last_hidden_state.shape[1] == 32 + 4
    patch(plain, "tome", ratio=0.5)
    with torch.no_grad():
        assert plain(**BACKBONE.inputs()).last_hidden_state.shape[1] == 32 + 4
