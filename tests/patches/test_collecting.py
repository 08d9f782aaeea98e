"""`forward_intermediates` of a reduced model returns the layers that were asked for, whichever way they are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import BY_NAME, fresh_model
from tokenreduce.patches.shared.collecting import taken
from torch import Tensor, nn

from tokenreduce import Schedule, patch, report, unpatch

ROWS = ("timm_vit", "timm_eva", "timm_dinov3", "timm_beit", "timm_naflex", "open_clip_vit")
INDICES = ([-2], [-1, -4], [0, -1], [1], [3, 0], 1, 3, None)


@pytest.mark.parametrize(
    ("indices", "layers"),
    [(None, {0, 1, 2, 3}), (1, {3}), (3, {1, 2, 3}), ([1], {1}), ([-2], {2}), ([-4, 3], {0, 3}), ((0, -1), {0, 3})],
)
def test_indices_mean_layers(indices, layers) -> None:
    assert taken(4, indices) == layers


def intermediates(model: Any, x: Tensor, **options: Any) -> list[Tensor]:
    found = model.forward_intermediates(x, intermediates_only=True, **options)
    return found["image_intermediates"] if isinstance(found, dict) else found


def whole_and_reduced(name: str) -> tuple[nn.Module, Tensor]:
    """A model, and images whose neighbouring patches are equal, of which merging loses nothing."""
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    assert backbone.equal_positions is not None
    backbone.equal_positions(model)
    return model, backbone.repeated((1, 2))[backbone.argument]


@pytest.mark.parametrize("name", ROWS)
@torch.no_grad()
def test_layers_are_those_of_the_whole_model(name: str) -> None:
    model, x = whole_and_reduced(name)
    cases = [{"indices": indices} for indices in INDICES]
    cases += [{"indices": [-3], "stop_early": True}, {"indices": [1, 2], "stop_early": True}]
    expected = [intermediates(model, x, **case) for case in cases]
    assert not torch.allclose(expected[0][0], expected[2][1], atol=1e-2)  # layers differ, so that a mix-up would show
    patch(model, "tome", schedule=Schedule.keep({0: 32}))
    for case, maps in zip(cases, expected, strict=True):
        found = intermediates(model, x, **case)
        assert [one.shape for one in found] == [one.shape for one in maps]
        for a, b in zip(found, maps, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))
        assert report(model).tokens_left == 32
    unpatch(model)
    assert all(torch.equal(a, b) for a, b in zip(intermediates(model, x), expected[-3], strict=True))
