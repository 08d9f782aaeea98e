"""What a report says, and patches saved in files."""

from __future__ import annotations

import json

import pytest
import torch
from backbones import fresh_model
from choosing import MAIN
from torch import nn

from tokenreduce import Schedule, load_patch, patch, report, save_patch
from tokenreduce.forward.records import Record, keep_record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.patching.finding import reduction_of

X = MAIN.images()


@pytest.fixture
def model() -> nn.Module:
    return fresh_model(MAIN)


def test_report(model) -> None:
    patch(model, "tome", r=[8, 0, 16])
    assert report(model).tokens == (56, 56, 40, 40)
    with pytest.raises(ValueError, match="there are no maps"):
        _ = report(model).map
    model.train()(X)
    result = report(model)
    assert result.sizes.shape == (2, 40) and result.sizes.sum(1).tolist() == [64, 64]
    assert not result.sizes.requires_grad
    assert [layer for layer, _ in result.maps] == [0, 2]
    assert result.map.dest.shape == (2, 64) and result.map.count == 40
    assert result.map_after(1).count == 56
    counted = torch.zeros(2, 40).scatter_add(1, result.map.dest, torch.ones(2, 64))
    assert torch.equal(counted, result.sizes)
    assert "tome(metric='keys'): 64 image tokens + 1 protected" in str(result)
    assert json.loads(json.dumps(result.to_json()))["tokens"] == [56, 56, 40, 40]


def test_a_report_before_the_first_and_behind_the_last_reduction(model) -> None:
    patch(model, "tome", schedule=Schedule.remove([0, 8, 16]).restore_after(1))
    model(X)
    result = report(model)
    assert result.map_after(0).dest.shape == (2, 64) and result.map_after(0).count == 64
    assert result.map_after(1).count == 56 and result.map_after(2).count == 48, "all tokens enter layer 2"
    assert result.sizes_after(2).shape == (2, 48)
    assert result.tokens == (64, 56, 48, 48) and result.tokens_left == 48
    assert [line.split() for line in str(result).splitlines()[-4:]] == [
        ["0", "64", "0"],
        ["1", "56", "8"],
        ["2", "48", "16"],
        ["3", "48", "0"],
    ]
    patch(model, "tome", schedule=Schedule.remove([0, 8]).restore_after(1))
    assert report(model).tokens_left == 56


def test_a_forward_that_stopped_early_is_not_outdated(model) -> None:
    tokens = report(patch(model, "tome", flops=0.6)).tokens
    keep_record(reduction_of(model), Record(64, tokens[:2], ()))
    assert report(model).tokens == tokens[:2] and not report(model).outdated and not report(model).refused


def test_the_share_is_of_the_model_as_it_is_now_or_as_it_was(model, monkeypatch) -> None:
    patch(model, "tome", ratio=0.5)
    before = report(model).flops_share
    model.blocks[3].mlp.fc1 = nn.Sequential(nn.Linear(32, 4096), nn.Linear(4096, model.blocks[3].mlp.fc1.out_features))
    assert report(model).flops_share != before
    monkeypatch.setattr(Reduction, "costs_now", lambda self, backbone: None)
    assert report(model).flops_share == before, "where it cannot be read"


def test_restore_of_the_report_equals_forced_restoring(model) -> None:
    patch(model, "tome", ratio=0.5, restore=True)
    full = model.forward_features(X)
    patch(model, "tome", ratio=0.5)
    short = model.forward_features(X)
    assert torch.allclose(report(model).restore(short[:, 1:]), full[:, 1:], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("tome", {"flops": 0.6}),
        ("random", {"r": 5, "seed": 4}),
        ("evit", {"ratio": 0.5, "fuse": False, "prop_attn": False}),
        ("pool", {"schedule": Schedule.keep({1: 0.5, 2: 20}), "restore": True}),
    ],
)
def test_a_saved_patch_loads(model, tmp_path, method, arguments) -> None:
    patch(model, method, **arguments)
    save_patch(model, tmp_path / "patch.json")
    twin = load_patch(fresh_model(MAIN), tmp_path / "patch.json")
    assert torch.equal(twin(X), model(X))
    assert torch.equal(twin.forward_features(X), model.forward_features(X))


def test_automatic_modes_stay_automatic_in_a_file(model, tmp_path) -> None:
    save_patch(patch(model, "tome", ratio=0.6), tmp_path / "patch.json")
    auto_encoder = fresh_model(MAIN)
    auto_encoder.pretrained_cfg = {"tag": "mae"}
    load_patch(auto_encoder, tmp_path / "patch.json")
    assert torch.equal(auto_encoder(X), patch(model, "tome", ratio=0.6, prop_attn=False)(X))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokenreduce": 99}', '{"tokenreduce": 1, "method": "tome"}'])
def test_a_wrong_file_is_refused(model, tmp_path, text) -> None:
    (tmp_path / "patch.json").write_text(text)
    with pytest.raises(ValueError, match=r"patch\.json"):
        load_patch(model, tmp_path / "patch.json")
