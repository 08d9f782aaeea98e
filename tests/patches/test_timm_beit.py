from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from timm.models.beit import Attention
from tokenreduce.patches.timm.beit import ReducedAttention

from tokenreduce import Schedule, patch, report, unpatch
from tokenreduce.patching.finding import find_backbone

NAMES = ["timm_beit", "timm_beit_shared", "timm_beit_only_shared"]
X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_restated_attention_is_the_same(name, fused) -> None:
    """Before anything is reduced the restated attention runs already."""
    model = fresh_model(BY_NAME[name])
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad():
        whole = model.forward_intermediates(X, indices=[2], output_fmt="NLC", intermediates_only=True)
        patch(model, "tome", schedule=Schedule.keep({3: 32}))
        assert all(type(block.attn) is ReducedAttention for block in model.blocks)
        restated = model.forward_intermediates(X, indices=[2], output_fmt="NLC", intermediates_only=True)
    assert torch.allclose(restated[0], whole[0], atol=1e-6)


def test_bias_belongs_to_the_representatives() -> None:
    """Cutting tokens off gives what masking them gives: those that are left keep the bias of their own places."""
    model = fresh_model(BY_NAME["timm_beit"])
    _, backbone, adapter = find_backbone(model)
    with torch.no_grad(), adapter.sliced(backbone, (40, 40, 40, 40), "pre"):
        cut = model.forward_features(X)
    assert cut.shape == (2, 41, 32)
    assert all(type(block.attn) is Attention for block in model.blocks)
    assert not hasattr(model.blocks[0], "_tokenreduce")
    hidden = torch.zeros(1, 1, 1, 65).index_fill(3, torch.arange(41, 65), -torch.inf)
    for block in model.blocks:
        block.attn.register_forward_pre_hook(
            lambda m, args, kwargs: (args, kwargs | {"shared_rel_pos_bias": hidden}), with_kwargs=True
        )
    with torch.no_grad():
        masked = model.forward_features(X)[:, :41]
    assert torch.allclose(cut, masked, atol=1e-5)


def test_a_position_bias_follows_tokens_that_stand_anywhere() -> None:
    """Tokens that a method keeps, wherever they stand, keep the bias between their own places."""
    model = fresh_model(BY_NAME["timm_beit"])
    patch(model, "random", schedule=Schedule.keep({1: 30}), prop_attn=False, restore=False)
    with torch.no_grad():
        kept = model.forward_features(X)
        rep = report(model).map.rep
        hidden = torch.full((2, 1, 1, 65), -torch.inf)
        hidden[..., 0] = 0
        hidden.scatter_(3, 1 + rep[:, None, None], 0.0)
        unpatch(model)
        for block in model.blocks[2:]:
            block.attn.register_forward_pre_hook(
                lambda m, args, kwargs: (args, kwargs | {"shared_rel_pos_bias": hidden}), with_kwargs=True
            )
        masked = model.forward_features(X)
    expected = masked.gather(
        1, torch.cat([torch.zeros(2, 1, dtype=torch.long), 1 + rep], 1)[..., None].expand(-1, -1, 32)
    )
    assert torch.allclose(kept, expected, atol=1e-5)


def test_set_input_size() -> None:
    model = fresh_model(BY_NAME["timm_beit_shared"])
    model.set_input_size((24, 40))
    patch(model, "tome", ratio=0.5)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 24, 40)).isfinite().all()
    assert report(model).tokens_left == 30


def test_bare_shared_bias_has_three_axes() -> None:
    model = patch(fresh_model(BY_NAME["timm_beit_only_shared"]), "tome", ratio=0.5)
    assert model.rel_pos_bias().ndim == 3
    with torch.no_grad():
        assert model(X).shape == (2, 7)
