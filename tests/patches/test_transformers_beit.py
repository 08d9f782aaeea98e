from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model

from tokenreduce import patch, report

X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["hf_beit_model", "hf_beit"])
def test_padding_masks_are_refused(name, implementation) -> None:
    model = fresh_model(BY_NAME[name])
    model.set_attn_implementation(implementation)
    patch(model, "tome", ratio=0.5)
    mask = torch.ones(2, 65)
    mask[:, 60:] = 0
    with pytest.raises(ValueError, match="does not fit a reduced BEiT"):
        model(X, attention_mask=mask)
    assert all(out.isfinite().all() for out in model(X).values())


@pytest.mark.parametrize("name", ["hf_beit", "hf_beit_shared"])
def test_interpolated_bias(name) -> None:
    model = fresh_model(BY_NAME[name])
    model.config._attn_implementation = "eager"
    large = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        whole = model(large, interpolate_pos_encoding=True).logits
        patch(model, "tome", ratio=0)
        assert torch.equal(model(large, interpolate_pos_encoding=True).logits, whole)
        patch(model, "tome", ratio=0.1)
        near = model(large, interpolate_pos_encoding=True).logits
    assert report(model).tokens_left == 90
    assert (near - whole).abs().max() < 0.1 * whole.abs().max()
