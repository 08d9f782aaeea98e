"""Patches that version 0.1.0 saved still load, and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokenreduce import load_patch, report, save_patch

SAVED = Path(__file__).parent / "saved"
# Tokens after each of the four layers, as version 0.1.0 reported them.
TOKENS = {
    "tome_flops": (52, 39, 27, 14),
    "evit_ratio": (64, 51, 41, 32),
    "random_r": (59, 54, 49, 44),
    "pool_schedule": (64, 32, 20, 20),
    "expedit_restored": (64, 32, 32, 32),
    "pitome_layers": (64, 50, 38, 38),
    "tome_list": (56, 56, 52, 52),
}


def small_vit() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=7).eval()


@pytest.mark.parametrize("name", [*TOKENS, "atm_adaptive"])
def test_a_patch_of_an_earlier_version_loads(name: str, tmp_path: Path) -> None:
    model = load_patch(small_vit(), SAVED / f"{name}.json")
    model(torch.randn(1, 3, 32, 32))
    if name in TOKENS:
        assert report(model).tokens == TOKENS[name]
    save_patch(model, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((SAVED / f"{name}.json").read_text())


def test_every_saved_file_is_tried() -> None:
    assert {path.stem for path in SAVED.glob("*.json")} == {*TOKENS, "atm_adaptive"}
