"""`tokenreduce.graph`: a patched model as a graph, here with the recording of `fake_graphs`, on a GPU with its own."""

from __future__ import annotations

import pytest
import torch
from backbones import shared_model
from choosing import MAIN
from fake_graphs import fake_graphs  # noqa: F401
from torch import nn

import tokenreduce
from tokenreduce import patch, unpatch
from tokenreduce.ops.native import dispatch

WAITS = "spectral"  # its eigenvectors make the host wait
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
faked = pytest.mark.usefixtures("fake_graphs")
every_method = pytest.mark.parametrize("method", [m for m in MAIN.methods if m != WAITS])


@pytest.fixture
def model():
    shared = shared_model(MAIN.name)
    yield shared
    unpatch(shared).to("cpu")


def replayed_and_plain(model: nn.Module, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The graph's and the model's answer to other images than the graph was recorded with."""
    patch(model, method, ratio=0.5)
    device = next(model.parameters()).device
    images = MAIN.images().to(device)
    graphed = tokenreduce.graph(model, images.flip(0, 3) * 2)
    with torch.no_grad():
        return graphed(images), model(images)


@faked
@every_method
def test_nothing_of_the_example_stays_in_the_graph(model, method) -> None:
    """A count, an index or a constant that a forward took from the data would be the example's for ever."""
    with dispatch.using("reference"):
        got, wanted = replayed_and_plain(model, method)
    assert torch.equal(got, wanted)


@on_a_gpu
@every_method
def test_a_graph_answers_as_its_model(model, method) -> None:
    got, wanted = replayed_and_plain(model.to("cuda"), method)
    torch.testing.assert_close(got, wanted)


@faked
def test_a_method_for_which_the_host_waits_is_refused(model) -> None:
    patch(model, WAITS, ratio=0.5)
    with pytest.raises(ValueError, match="spectral cannot be recorded as a CUDA graph: operation not permitted"):
        tokenreduce.graph(model, MAIN.images())


@faked
@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_examples_of_every_kind(model, kind) -> None:
    patch(model, "tome", r=4)
    x = MAIN.images()
    example = {"tensor": x, "tuple": (x,), "dict": {"x": x}}[kind]
    graphed = tokenreduce.graph(model, example)
    with torch.no_grad(), dispatch.using("reference"):
        out = graphed(**example) if kind == "dict" else graphed(x)
        assert torch.equal(out, model(x))


@faked
def test_outputs_are_the_callers(model) -> None:
    patch(model, "tome", r=4)
    x = MAIN.images()
    graphed = tokenreduce.graph(model, x)
    first = graphed(x)
    before = first.clone()
    graphed(x + 1)
    assert torch.equal(first, before)


@faked
def test_a_changed_patch_is_refused(model) -> None:
    patch(model, "tome", r=4)
    graphed = tokenreduce.graph(model, MAIN.images())
    patch(model, "tome", r=5)
    with pytest.raises(ValueError, match="patched again or unpatched since"):
        graphed(MAIN.images())
    unpatch(model)
    with pytest.raises(ValueError, match="patched again or unpatched since"):
        graphed(MAIN.images())


def test_without_a_gpu_it_is_refused_in_a_sentence(model) -> None:
    patch(model, "tome", r=4)
    with pytest.raises(ValueError, match="CUDA graphs are for GPUs, and this model is on cpu; call the model itself"):
        tokenreduce.graph(model, MAIN.images())


def test_an_example_elsewhere_is_refused(model) -> None:
    patch(model, "tome", r=4)
    with pytest.raises(ValueError, match="model and example are on cpu, meta; move all of them to one GPU"):
        tokenreduce.graph(model, MAIN.images().to("meta"))


def test_an_adaptive_method_without_a_budget_is_refused(model) -> None:
    patch(model, "atm")
    with pytest.raises(ValueError, match=r"asks the data how many tokens to keep, .* for example flops=0.6"):
        tokenreduce.graph(model, MAIN.images())


def test_training_mode_is_refused(model) -> None:
    patch(model, "tome", r=4).train()
    try:
        with pytest.raises(ValueError, match=r"in training mode.*model.eval\(\)"):
            tokenreduce.graph(model, MAIN.images())
    finally:
        model.eval()


def test_an_unpatched_model_and_other_examples_are_refused(model) -> None:
    with pytest.raises(ValueError, match="is not patched"):
        tokenreduce.graph(model, MAIN.images())
    patch(model, "tome", r=4)
    with pytest.raises(TypeError, match="example is a int; give a tensor, a tuple"):
        tokenreduce.graph(model, 3)
