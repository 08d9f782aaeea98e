"""EoMT: tokens are reduced before its queries enter and are all there afterwards."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from rows.transformers.eomt import CONFIG
from transformers import EomtConfig, EomtForUniversalSegmentation

import tokenreduce
from tokenreduce import patch, report

ROW = BY_NAME["hf_eomt"]


@pytest.mark.parametrize("masks", [0, 1, 2])
@pytest.mark.parametrize("scales", [1, 3])
def test_closed_costs_agree_with_counting(masks, scales) -> None:
    model = EomtForUniversalSegmentation(EomtConfig(**CONFIG | {"num_upscale_blocks": scales})).eval()
    model.attn_mask_probs[masks:] = 0
    costs = tokenreduce.patching.finding.find_backbone(model)[2].geometry(model).costs
    counted = tokenreduce.count_flops(model, ROW.inputs(1))
    assert counted.uncounted == {}
    assert costs.macs((64,) * 4, (64,) * 4, 5, "mid") == counted.total


def test_only_layers_without_queries_reduce() -> None:
    model = patch(fresh_model(ROW), "tome", ratio=0.5)
    seen = []
    for layer in model.layers:
        layer.mlp.fc1.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    outputs = model(**ROW.inputs(), output_hidden_states=True)
    tokens = report(model).tokens
    assert len(tokens) == 4 and tokens[-1] == 32
    assert seen == [*(count + 3 for count in tokens), 64 + 3 + 5, 64 + 3 + 5]
    assert [state.shape[1] for state in outputs.hidden_states] == [67] * 5 + [72] * 2
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        patch(model, "tome", ratio=0.5, layers=[4])


def test_losses_reach_the_first_layer() -> None:
    model = patch(fresh_model(ROW).train(), "tome", ratio=0.5)
    labels = {"mask_labels": [torch.ones(2, 32, 32)] * 2, "class_labels": [torch.tensor([1, 3])] * 2}
    model(**ROW.inputs(), **labels).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.layers[0].mlp.parameters())


def test_what_does_not_fit_is_refused() -> None:
    queries_first = EomtForUniversalSegmentation(EomtConfig(**CONFIG | {"num_blocks": 6}))
    with pytest.raises(ValueError, match="its queries enter before the first layer"):
        patch(queries_first, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="restore=False leaves no map"):
        patch(fresh_model(ROW), "tome", ratio=0.5, restore=False)
    with pytest.raises(ValueError, match="output_attentions"):
        patch(fresh_model(ROW), "tome", ratio=0.5)(**ROW.inputs(), output_attentions=True)
