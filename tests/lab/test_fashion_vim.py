"""The shipped state-space model is what its card says, and reads what stands for tokens that are gone."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import tokenreduce
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.shipped.fashion_vim import WEIGHTS, fashion_vim
from tokenreduce.lab.shipped.named import load_model

COUNT = 100


@lru_cache(maxsize=1)
def images() -> tuple[Tensor, Tensor]:
    pictures, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    step = len(pictures) // COUNT
    return fashion_mnist.normalise(pictures[::step]), labels[::step]


def features(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.forward_head(model.forward_features(images()[0]), pre_logits=True)


def test_weights_are_small_and_right() -> None:
    model = fashion_vim()
    assert WEIGHTS.stat().st_size < 3e6 and not model.training
    hits = (features(model) @ model.head.weight.T + model.head.bias).argmax(1) == images()[1]
    assert float(hits.float().mean()) >= 0.88


def test_it_is_called_by_its_name() -> None:
    model, shape = load_model("fashion_vim", None, True)
    assert type(model) is type(fashion_vim()) and shape == (1, 28, 28)
    with pytest.raises(ValueError, match="fashion_vim takes 28"):
        load_model("fashion_vim", 32, True)


def test_stand_ins_cost_less_than_half_of_a_shorter_sequence() -> None:
    model = fashion_vim()
    whole = features(model)

    def error(method: str, **rules: str) -> float:
        tokenreduce.patch(model, method, flops=0.6, **rules)
        found = features(model)
        tokenreduce.unpatch(model)
        return float((1 - torch.cosine_similarity(found, whole)).mean())

    for method in ("ward", "tome", "random"):
        assert error(method) < 0.5 * error(method, scan_conv="compact"), method
    assert error("ward") < error("ward", scan_gap="hold") < error("tome", scan_gap="hold")
    assert error("ward") < 0.04
