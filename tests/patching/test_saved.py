"""Patches that version 0.1.0 saved still load, and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokenreduce import load_patch, methods, report, save_patch
from tokenreduce.patching.finding import reduction_of
from tokenreduce.reducers.registry import lookup

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
    again, first = (json.loads(path.read_text()) for path in (tmp_path / "again.json", SAVED / f"{name}.json"))
    former = lookup(first["method"]).former
    assert again == first | {"options": {**former, **first["options"]}}


def test_options_that_came_later_mean_what_the_method_did_before(tmp_path: Path) -> None:
    """A dropped token's size was lost when this patch was saved, though the default of today passes it on."""
    assert "inherit" not in json.loads((SAVED / "evit_ratio.json").read_text())["options"]
    loaded = reduction_of(load_patch(small_vit(), SAVED / "evit_ratio.json")).reducer
    assert loaded.options()["inherit"] is False and lookup("evit")().options()["inherit"] is True
    clusters = reduction_of(load_patch(small_vit(), SAVED / "expedit_restored.json")).reducer.options()
    assert (clusters["alone"], clusters["sharpness"], clusters["window"]) == (0.0, 8.0, 5)
    for name, cls in ((name, lookup(name)) for name in methods()):
        assert cls.former.keys() <= cls().options().keys(), name


def test_every_saved_file_is_tried() -> None:
    assert {path.stem for path in SAVED.glob("*.json")} == {*TOKENS, "atm_adaptive"}
