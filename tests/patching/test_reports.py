"""What a report says, and patches saved in files."""

from __future__ import annotations

import json

import pytest
import torch
from backbones import fresh_model
from choosing import MAIN
from torch import nn

from tokenreduce import Schedule, load_patch, patch, report, save_patch

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
