"""Experts are chosen by image."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model

from tokenreduce import patch

BACKBONE = BY_NAME["hf_vitpose_experts"]


@torch.no_grad()
def test_experts_follow_the_dataset() -> None:
    model = fresh_model(BACKBONE)
    patch(model, "tome", ratio=0.5)
    inputs = BACKBONE.inputs()
    outputs = [model(**inputs | {"dataset_index": torch.tensor([0, i])}).feature_maps[0] for i in (0, 2)]
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert not torch.equal(outputs[0][1], outputs[1][1])


def test_experts_need_the_dataset() -> None:
    model = fresh_model(BACKBONE)
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="dataset_index"):
        model(BACKBONE.inputs()["pixel_values"])
