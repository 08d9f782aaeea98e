"""What of a model's outputs is compared, for each kind of model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.search.features import features

AROUND = Geometry(1, 1, 1, 1, (5,), 3, 1, 3, Costs(0, 1, (1,), (1,), (1,)))
STATES = torch.arange(2 * 7 * 3.0).view(2, 7, 3)  # a class token, five image tokens, one token behind them


class Stub(nn.Module):
    def __init__(self, out: object) -> None:
        super().__init__()
        self.out = out

    def forward(self, images: torch.Tensor) -> object:
        return self.out


class Timm(nn.Module):
    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return STATES

    def forward_head(self, states: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return states.mean(1)


def seen(model: nn.Module) -> list[torch.Tensor]:
    return features(model, torch.zeros(2, 3, 8, 8), AROUND, 5)


def test_features_and_image_tokens_where_the_model_shows_them() -> None:
    pooled, tokens = seen(Timm())
    assert torch.equal(pooled, STATES.mean(1)) and torch.equal(tokens, STATES[:, 1:6])
    pooled, tokens = seen(Stub(SimpleNamespace(last_hidden_state=STATES, pooler_output=STATES[:, 3])))
    assert torch.equal(pooled, STATES[:, 3]) and torch.equal(tokens, STATES[:, 1:6])
    pooled, _ = seen(Stub(SimpleNamespace(last_hidden_state=STATES)))
    assert torch.equal(pooled, STATES[:, 0])


def test_image_tokens_around_a_class_token_in_their_middle() -> None:
    middle = replace(AROUND, suffix=0, ordered="middle")
    tokens = features(Timm(), torch.zeros(2, 3, 8, 8), middle, 6)[1]
    assert torch.equal(tokens, STATES[:, [0, 1, 2, 4, 5, 6]])


def test_tokens_that_are_not_those_of_the_image_are_not_compared() -> None:
    assert len(features(Timm(), torch.zeros(2, 3, 8, 8), AROUND, 4)) == 1


def test_the_answer_where_it_is_all_there_is() -> None:
    for out in (STATES, SimpleNamespace(logits=STATES)):
        [answer] = seen(Stub(out))
        assert torch.equal(answer, STATES.flatten(1))
    with pytest.raises(InvalidTypeError, match="returns a list"):
        seen(Stub([STATES]))
