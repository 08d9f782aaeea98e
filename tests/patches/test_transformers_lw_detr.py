"""LW-DETR's windows in the batch become tokens in raster order and windows again."""

from __future__ import annotations

import dataclasses

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, fresh_model
from rows.transformers.lw_detr import CONFIG
from tokenreduce.patches.transformers.lw_detr import as_tokens, as_windows
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.lw_detr.modeling_lw_detr import LwDetrViTBackbone

from tokenreduce import patch, report

ROW = BY_NAME["hf_lw_detr_backbone"]


def test_windows_and_tokens_are_each_others_inverse() -> None:
    tokens = torch.arange(3 * 24 * 2.0).view(3, 24, 2)
    windows = as_windows(tokens, (4, 6), 2)
    assert windows.shape == (12, 6, 2)
    assert windows[1, :, 0].tolist() == [6, 8, 10, 18, 20, 22]  # the right half of the first two rows
    assert torch.equal(as_tokens(windows, (4, 6), 2), tokens)


@pytest.mark.parametrize("method", ["tome", "pool", "kmeans"])
def test_other_sizes_than_the_configured_one(method) -> None:
    wide = dataclasses.replace(ROW, grid=(8, 16))
    checks.check_oracle(wide, method)
    checks.check_exact(wide, method)


def test_layers_called_without_collecting_hand_reduced_tokens_on() -> None:
    model, inputs = fresh_model(ROW), ROW.inputs()
    windows = as_windows(model.embeddings(inputs["pixel_values"]).flatten(2).transpose(1, 2), (8, 8), 2)
    patch(model, "tome", ratio=0.5)
    expected = ROW.collect(model, inputs)[-1]
    seen = []
    for layer in model.encoder.layer:
        layer.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape[:2])))
    out = model.encoder(windows).last_hidden_state
    assert seen == [(8, 16), (2, report(model).tokens[1]), (2, report(model).tokens[2]), (8, 16), (8, 16)]
    torch.testing.assert_close(as_tokens(out, (8, 8), 2), expected)
    with pytest.raises(ValueError, match="are not those of a 8 x 8 grid"):
        model.encoder(windows[:, :8])


def test_what_does_not_fit_is_refused() -> None:
    windowed = LwDetrViTBackbone(LwDetrViTConfig(**CONFIG | {"window_block_indices": [0, 1, 2, 3, 4]}))
    with pytest.raises(ValueError, match="all its layers have windows"):
        patch(windowed, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="restore=False leaves no map"):
        patch(fresh_model(ROW), "tome", ratio=0.5, restore=False)
    with pytest.raises(ValueError, match="attention_mask does not fit"):
        patch(fresh_model(ROW), "tome", ratio=0.5)(**ROW.inputs(), attention_mask=torch.zeros(2, 1, 1, 64))
