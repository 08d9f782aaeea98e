"""Law 9: merging what is identical changes nothing; and maps come back whole, in raster order."""

from __future__ import annotations

import backbone_checks as checks
import pytest
from backbones import BY_NAME, Backbone, fresh_model
from choosing import SAMPLE, finds_duplicates, pairs

import tokenreduce
from tokenreduce import patch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
HAS_ORACLE = [m for m in tokenreduce.methods("encoder") if checks.by_place(m) or finds_duplicates(m)]


def merges_exactly(backbone: Backbone) -> bool:
    return backbone.merges_exactly


@pairs(everywhere=SAMPLE, first=HAS_ORACLE, main=HAS_ORACLE, where=merges_exactly, among=lambda m: m in HAS_ORACLE)
def test_merging_identical_tokens_changes_nothing(backbone: Backbone, method: str) -> None:
    checks.check_oracle(backbone, method)


@pairs(
    everywhere=("tome", "pool"),
    among=("tome", "pool").__contains__,
    where=lambda row: row.merges_exactly and row.in_a_row,
)
def test_so_does_merging_them_in_a_later_layer(backbone: Backbone, method: str) -> None:
    checks.check_oracle(backbone, method, nth=1)


@pairs(everywhere=SAMPLE, first=tokenreduce.methods("encoder"), main=tokenreduce.methods("encoder"))
def test_maps_come_back_whole_in_raster_order(backbone: Backbone, method: str) -> None:
    checks.check_restore(backbone, method)


@pytest.mark.parametrize("restore", [True, False])
def test_restore_can_be_forced(restore) -> None:
    backbone = BY_NAME["timm_vit"]
    model, x = patch(fresh_model(backbone), "tome", ratio=0.5, restore=restore), backbone.images()
    assert model.forward_features(x).shape[1] == (65 if restore else 33)
    if not restore:
        with pytest.raises(ValueError, match="this call returns feature maps"):
            model.forward_intermediates(x)
        assert model.forward_features(x).shape[1] == 33
