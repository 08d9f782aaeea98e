"""The text tower has layers of the same class, which are left alone."""

from __future__ import annotations

import pytest
from backbones import BY_NAME, fresh_model
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

import tokenreduce
from tokenreduce import patch


def test_only_the_vision_tower_is_patched() -> None:
    model = fresh_model(BY_NAME["hf_siglip"])
    patch(model, "tome", ratio=0.5)
    assert tokenreduce.patching.finding.find_backbone(model)[0] == "vision_model"
    assert all(type(layer) is SiglipEncoderLayer for layer in model.text_model.encoder.layers)
    with pytest.raises(ValueError, match="holds no backbone"):
        patch(model.text_model, "tome", ratio=0.5)
