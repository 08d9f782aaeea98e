from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from tokenreduce.patches.timm.naflexvit import valid_tokens

from tokenreduce import patch, report, unpatch

LOW = torch.finfo(torch.float32).min
VALID = torch.tensor([[True, True, False], [True, True, True]])


def additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, LOW)[:, None]


@pytest.mark.parametrize(
    "visible",
    [VALID[:, None], VALID[:, None].expand(-1, 3, -1), VALID[:, None] & VALID[..., None]],
    ids=["one row", "all queries", "visible queries"],
)
def test_masks_that_hide_padding(visible) -> None:
    assert torch.equal(valid_tokens(additive(visible), torch.zeros(2, 3, 8)), VALID)


@pytest.mark.parametrize(
    "mask",
    [
        additive(torch.ones(2, 3, 3).tril().bool()),
        torch.ones(2, 1, 3, 3, dtype=torch.bool),
        torch.rand(2, 1, 3, 3),
        torch.zeros(2, 4, 3, 3),
    ],
    ids=["causal", "boolean", "bias", "heads"],
)
def test_other_masks_are_refused(mask) -> None:
    with pytest.raises(ValueError, match="only masks that hide padding"):
        valid_tokens(mask, torch.zeros(2, 3, 8))


def test_dictionaries_are_inputs_too() -> None:
    row = BY_NAME["timm_naflex_padded_rope"]
    model, inputs = fresh_model(row), row.inputs()
    batch = {"patches": inputs["x"], "patch_coord": inputs["patch_coord"], "patch_valid": inputs["patch_valid"]}
    patch(model, "tome", ratio=0.5)
    with torch.no_grad():
        expected = model(**inputs)
        assert torch.equal(model(batch), expected)
        maps = model.forward_intermediates(batch, output_fmt="NLC", output_dict=True)
        features = model.forward_features(*inputs.values())
    assert report(model).tokens_left == 32
    assert all(m.shape == (2, 64, 32) for m in maps["image_intermediates"])
    assert features["patches"].shape == (2, 65, 32)


@pytest.mark.parametrize("name", ["timm_naflex_padded", "timm_naflex_padded_mixed"])
def test_maps_of_padded_images_are_whole(name) -> None:
    row = BY_NAME[name]
    model, inputs = fresh_model(row), row.inputs()
    read = lambda: model.forward_intermediates(  # noqa: E731
        {"patches": inputs["x"], **{k: inputs[k] for k in ("patch_coord", "patch_valid")}}, output_fmt="NLC"
    )[1]
    real = inputs["patch_valid"][..., None]
    with torch.no_grad():
        whole = read()
        patch(model, "tome", ratio=0.1)  # less than there is padding
        reduced = read()
        unpatch(model)
    assert all(torch.allclose(a * real, b * real, atol=1e-5) for a, b in zip(whole, reduced, strict=True))
