"""Swin is refused with its reason, by `patch` and by `compatible`, and left as it was."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tokenreduce import compatible, methods, patch, report, unpatch

SMALL = {"img_size": 64, "embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "num_classes": 7}
MODELS = {
    "swin_tiny_patch4_window7_224": {"window_size": 4},
    "swinv2_tiny_window8_256": {"window_size": 4},
    "swinv2_cr_tiny_224": {"window_size": 4},
}


@pytest.mark.parametrize("name", MODELS)
def test_swin_is_refused_with_the_reason(name) -> None:
    model = timm.create_model(name, **SMALL, **MODELS[name]).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        fitting = compatible(model)
        assert not fitting
        assert set(fitting.refused) == set(methods())
        assert all("windows that are shifted" in reason for reason in fitting.refused.values())
        for method in ("tome", "pool"):
            with pytest.raises(ValueError, match=rf"{method} cannot run on this Swin.*: all its layers .* fit: none"):
                patch(model, method, ratio=0.5)
        with pytest.raises(ValueError, match="not patched"):
            report(model)
        assert torch.equal(unpatch(model)(x), before)


def test_swin_inside_another_model_is_refused_too() -> None:
    model = nn.Sequential(timm.create_model("swin_tiny_patch4_window7_224", **SMALL, window_size=4), nn.Linear(7, 2))
    with pytest.raises(ValueError, match="windows that are shifted"):
        patch(model, "tome", ratio=0.5)
