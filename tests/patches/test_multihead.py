"""The restated `nn.MultiheadAttention` is the original, and what it does not cover is refused."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from tokenreduce.patches.shared.classes import swap, swap_back
from tokenreduce.patches.shared.multihead import ATTENTIONS, ReducedMultiheadAttention
from torch import nn

from tokenreduce import patch, report
from tokenreduce.forward.marks import mark
from tokenreduce.forward.run import Run

ROW = BY_NAME["torchvision_vit"]


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(32, 2, batch_first=True, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def reduce_attention(module: nn.MultiheadAttention) -> None:
    mark(module, object())  # no run belongs to it
    swap([module], ATTENTIONS)


@pytest.mark.parametrize("grad", [True, False])  # with and without its fused kernel
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_restated_attention_is_the_original(grad, train, bias, sized) -> None:
    module = attention(bias=bias, dropout=0.2).train(train)
    x, logits = torch.randn(3, 17, 32), torch.randn(3, 17) * sized
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        mask = {"key_padding_mask": logits} if sized else {}
        expected = module(x, x, x, need_weights=False, **mask)[0]
        reduce_attention(module)
        torch.manual_seed(1)
        restated = module(x, x, x, need_weights=False, attn_mask=logits[:, None, None])[0]
    torch.testing.assert_close(restated, expected, rtol=1e-6, atol=1e-6)
    assert isinstance(module, ReducedMultiheadAttention)
    swap_back([module], ATTENTIONS)
    assert type(module) is nn.MultiheadAttention


def test_restated_attention_passes_other_calls_on() -> None:
    module = attention().eval()
    x, causal = torch.randn(3, 17, 32), torch.full((17, 17), -torch.inf).triu(1)
    expected = module(x, x, x, attn_mask=causal)
    reduce_attention(module)
    for ours, theirs in zip(module(x, x, x, attn_mask=causal), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (attention(kdim=16, vdim=16), "separate projections"),
        (attention(add_bias_kv=True), "bias_k"),
        (attention(add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(32, 2), "batch_first=False"),
        (nn.Linear(32, 32), "its attention is Linear"),
    ],
)
def test_attention_of_another_make_is_refused(odd, reason) -> None:
    model = fresh_model(ROW)
    model.encoder.layers[2].self_attention = odd
    with pytest.raises(ValueError, match=reason):
        patch(model, "tome", ratio=0.5)
    model = fresh_model(ROW)
    model.encoder.layers[2].self_attention.out_proj = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="output projection of its attention was replaced"):
        patch(model, "tome", ratio=0.5)


def test_only_reducing_layers_keep_keys(monkeypatch) -> None:
    model = patch(fresh_model(ROW), "tome", r=[8, 0, 8, 0])
    kept, leave = [], Run.leave

    def seen(run, layer, x, everything=False):
        kept.append(sorted(run.shown.entries))
        return leave(run, layer, x, everything)

    monkeypatch.setattr(Run, "leave", seen)
    model(**ROW.inputs())
    assert kept == [["mean_keys"], [], ["mean_keys"], []]


def test_tokens_come_back_for_what_holds_the_model() -> None:
    class Dense(nn.Module):
        def __init__(self, vit: nn.Module) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = torch.cat([self.vit.class_token.expand(x.shape[0], -1, -1), self.vit._process_input(x)], 1)
            return self.vit.encoder(tokens)[:, 1:]

    model = patch(Dense(fresh_model(ROW)), "tome", ratio=0.5)
    assert model(ROW.inputs()["x"]).shape == (2, 64, 32)
    assert report(model).tokens_left == 32
