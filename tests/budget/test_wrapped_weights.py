"""Whatever holds a weight is counted, or listed: the share that `report` states is what a dispatch count finds."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from changing import add_lora, projections
from choosing import MAIN, every_backbone
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tokenreduce
from tokenreduce import count_flops, patch, report
from tokenreduce.patching.reporting import as_it_is_now

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
FAMILIES = [MAIN, *(BY_NAME[name] for name in ("hf_vit", "hf_dinov2", "torchvision_vit"))]


class LowRank(nn.Module):
    """A parametrisation that adds a product of low rank, as minLoRA has it."""

    def __init__(self, out: int, into: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, into) / 9), nn.Parameter(torch.randn(out, 2) / 9)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class HighRank(LowRank):
    """The same of a rank that makes it cost more than the layers themselves."""

    def __init__(self, out: int, into: int) -> None:
        super().__init__(out, into)
        self.down, self.up = nn.Parameter(torch.zeros(4096, into)), nn.Parameter(torch.zeros(out, 4096))


class Foreign(nn.Module):
    """A matrix of a class that nobody knows, which does not say its sides."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.matrix, self.bias)


def every_projection(model: nn.Module, do) -> nn.Module:
    for name in projections(model):
        do(model.get_submodule(name))
    return model


WRAPPED = {
    "plain": lambda model: model,
    "quantised": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8),
    "weight_norm": lambda model: every_projection(model, parametrizations.weight_norm),
    "spectral_norm": lambda model: every_projection(model, parametrizations.spectral_norm).eval(),
    "low rank": lambda model: every_projection(
        model, lambda m: parametrize.register_parametrization(m, "weight", LowRank(*m.weight.shape))
    ),
    "lora": add_lora,
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("backbone", FAMILIES, ids=lambda row: row.name)
def test_the_share_is_what_a_dispatch_count_finds(backbone: Backbone, how: str) -> None:
    if how == "quantised" and "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build has no quantised kernels")
    model, inputs = WRAPPED[how](fresh_model(backbone)), backbone.inputs(batch=1)
    with torch.no_grad():
        whole = count_flops(model, inputs)
        patch(model, "kmeans", flops=0.6)
        reduced = count_flops(model, inputs)
    assert not whole.uncounted
    assert report(model).uncounted == ()
    assert report(model).flops_share == pytest.approx(reduced.total / whole.total, abs=0.02)


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("backbone", FAMILIES, ids=lambda row: row.name)
def test_layers_wrapped_after_the_patch_are_counted_too(backbone: Backbone, how: str) -> None:
    if how == "quantised" and "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build has no quantised kernels")
    plain, inputs = fresh_model(backbone), backbone.inputs(batch=1)
    counts = report(patch(WRAPPED[how](fresh_model(backbone)), "kmeans", flops=0.6)).tokens
    with torch.no_grad():
        whole = count_flops(WRAPPED[how](fresh_model(backbone)), inputs)
        backbone.outputs(patch(plain, "kmeans", flops=0.6), inputs)
        before = report(plain).tokens
        model = WRAPPED[how](plain)
        stale = report(model)
        if how != "quantised":  # a copy, which has not run
            assert stale.tokens == before
            assert ("the next one meets the budget" in str(stale)) == stale.to_json()["outdated"] == (before != counts)
        reduced = count_flops(model, inputs)
    said = report(model)
    assert said.tokens == counts and not said.outdated
    assert said.flops_share == pytest.approx(reduced.total / whole.total, abs=0.02)


class Counted(nn.Module):
    """A parametrisation that draws random numbers, and sets a parameter of its own when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Parameter(torch.zeros(1))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            self.noise.copy_(torch.rand(1) + 1)
        return weight * self.noise


CHANGING = {
    "spectral_norm": lambda m: parametrizations.spectral_norm(m),
    "random": lambda m: parametrize.register_parametrization(m, "weight", Counted()),
}


@pytest.mark.parametrize("how", CHANGING)
def test_looking_at_parametrised_weights_changes_nothing(how: str) -> None:
    model = patch(fresh_model(MAIN), "tome", flops=0.6).train()
    every_projection(model, CHANGING[how])
    state, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert report(model).flops_share < 1
    patch(model, "tome", flops=0.5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


def high_rank(model: nn.Module) -> nn.Module:
    """Making the weights costs more than all images."""
    for name in projections(model):
        module = model.get_submodule(name)
        parametrize.register_parametrization(module, "weight", HighRank(*module.weight.shape))
    return model


def test_a_report_says_what_the_next_forward_refuses() -> None:
    model = patch(fresh_model(MAIN), "tome", flops=0.5)
    model(MAIN.images())
    before = report(model)
    assert before.refused == "" and before.to_json()["refused"] == "" and "refused" not in str(before)
    high_rank(model)
    said = report(model)
    with pytest.raises(ValueError, match=r"flops=0\.5 cannot be reached with 64 image tokens") as error:
        model(MAIN.images())
    assert said.refused == said.to_json()["refused"] == str(error.value)
    assert said.outdated and said.tokens == before.tokens
    assert str(error.value) in str(said) and "the next one meets the budget" not in str(said)


def exchanged(model: nn.Module) -> None:
    model.blocks[1], model.blocks[2] = model.blocks[2], model.blocks[1]


def cut(model: nn.Module) -> None:
    model.blocks = model.blocks[:2]


@pytest.mark.parametrize(
    ("change", "what"),
    [(exchanged, "the blocks are in another order"), (cut, "to which its budget is spread otherwise")],
)
@pytest.mark.parametrize("ran", [False, True])
def test_a_report_says_what_is_wrong_with_a_changed_model(change, what: str, ran: bool) -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    if ran:
        model(MAIN.images())
    change(model)
    said = report(model)
    with pytest.raises(ValueError, match=what) as error:
        model(MAIN.images())
    assert said.refused == str(error.value) and said.outdated == ran


@every_backbone()
def test_a_patched_model_costs_what_it_did(backbone: Backbone) -> None:
    model = patch(fresh_model(backbone), "random", ratio=0.3)
    reduction = tokenreduce.patching.finding.reduction_of(model)
    assert as_it_is_now(reduction).geometry.costs == reduction.geometry.costs


def test_torchao_is_counted_as_the_matrices_it_stands_for() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    expected = report(patch(fresh_model(MAIN), "kmeans", flops=0.6)).tokens
    model = fresh_model(MAIN)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert report(patch(model, "kmeans", flops=0.6)).tokens == expected


def test_weights_that_nothing_counts_are_listed() -> None:
    model = fresh_model(MAIN)
    model.blocks[1].mlp.fc1 = Foreign(model.blocks[1].mlp.fc1)
    patch(model, "tome", ratio=0.5)
    assert report(model).uncounted == ("blocks.1.mlp.fc1.matrix",)
    assert report(model).to_json()["uncounted"] == ["blocks.1.mlp.fc1.matrix"]
    assert "not counted: blocks.1.mlp.fc1.matrix" in str(report(model))
    for block in (0, 2, 3):
        model.blocks[block].mlp.fc1 = Foreign(model.blocks[block].mlp.fc1)
        said = str(report(patch(model, "tome", ratio=0.5)))
        assert ("fc1.matrix and 1 more" in said) == (block == 3) and "0 more" not in said
