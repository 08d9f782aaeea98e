"""The hybrid's convolutions count as part of the embedding."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model

import tokenreduce


def test_costs_of_the_hybrid() -> None:
    backbone = BY_NAME["hf_dpt_hybrid"]
    model = fresh_model(backbone).dpt
    _, _, adapter = tokenreduce.patching.finding.find_backbone(model)
    images = backbone.inputs(1)["pixel_values"]
    with torch.no_grad():
        counted = tokenreduce.count_flops(model, images).total
    n = backbone.count
    assert adapter.geometry(model).costs.macs((n,) * 4, (n,) * 4, 1, "mid") == pytest.approx(counted, rel=0.01)
