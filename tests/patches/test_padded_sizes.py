"""What is reported of padded images: sizes count real tokens only."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, shared_model

from tokenreduce import Schedule, patch, report, unpatch

ROWS = ("hf_siglip2_padded", "timm_naflex_padded", "timm_naflex_padded_rope", "timm_naflex_padded_mixed")
REAL = [40, 48, 56, 64]  # of the 64 tokens of each image


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("method", ["tome", "ward", "atc", "kmeans"])
@torch.no_grad()
def test_sizes_add_up_to_the_real_tokens(name: str, method: str) -> None:
    """These methods drop nothing, so that each real token is counted once, after one reduction and after two."""
    backbone, model = BY_NAME[name], shared_model(name)
    try:
        patch(model, method, schedule=Schedule.keep({1: 45, 2: 30}))
        backbone.outputs(model, backbone.inputs(4))
        found = report(model)
        assert found.sizes.shape == (4, 30) and found.sizes.sum(1).tolist() == REAL
        assert found.sizes_after(1).shape == (4, 45) and found.sizes_after(1).sum(1).tolist() == REAL
        assert found.sizes_after(0).shape == (4, 64) and found.sizes_after(0).sum(1).tolist() == REAL
    finally:
        unpatch(model)
