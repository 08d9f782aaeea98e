"""Law: whatever is done to a model, in whatever order, it computes what a fresh model computes that was brought to the
same state by the shortest way, or refuses in words; and nothing stays in memory."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from changing import add_lora, cut, layers_of, offload, onload, outputs_or_words, quantise, unload_lora
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tokenreduce import patch, reduced, unpatch
from tokenreduce.forward import stack

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROWS = ("hf_vit", "timm_vit", "torchvision_vit", "hf_clip_vision", "timm_eva", "timm_beit", "open_clip_vit")
METHODS = ("tome", "evit", "ward", "pool", "kmeans", "random")
STEPS = 20


class DeliberateError(ArithmeticError):
    pass


def fail(module: nn.Module, args: Any) -> None:
    raise DeliberateError


class Model(RuleBasedStateMachine):
    """One model, and the shortest way to its state: LoRA, merging, cutting, quantising, dtype, then the patch."""

    @initialize(name=st.sampled_from(ROWS), method=st.sampled_from(METHODS))
    def begin(self, name: str, method: str) -> None:
        self.row: Backbone = BY_NAME[name]
        self.model = fresh_model(self.row)
        self.other = patch(fresh_model(BY_NAME["timm_vit"]), "tome", ratio=0.5)
        with torch.no_grad():
            self.other_expected = self.other(BY_NAME["timm_vit"].images())
        self.changes: list[str] = []
        self.method: str | None = None
        self.dtype = torch.float32
        self.offloaded = False
        self.patch(method)

    def shortest(self) -> nn.Module:
        model = fresh_model(self.row)
        for change in self.changes:
            model = self.changed(model, change)
        model = model.to(self.dtype)
        return model if self.method is None else patch(model, self.method, ratio=0.5)

    @staticmethod
    def changed(model: nn.Module, change: str) -> nn.Module:
        if change == "lora":
            return add_lora(model)
        if change in ("merge", "unload"):
            return unload_lora(model, change == "merge")
        if change == "cut":
            return cut(model, len(layers_of(model)) - 1)
        assert change == "quantise"
        return quantise(model)

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        inputs = self.row.inputs(2, seed)
        return {
            n: v.to(self.dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()
        }

    def apply(self, change: str) -> None:
        if runs_at_all(self.row, self.changes, change):
            self.model = self.changed(self.model, change)
            self.changes.append(change)

    @property
    def adapted(self) -> bool:
        return any(isinstance(module, LoraLayer) for module in self.model.modules())

    @property
    def plain(self) -> bool:
        return self.dtype == torch.float32 and "quantise" not in self.changes and not self.offloaded

    @rule(method=st.sampled_from(METHODS))
    def patch_again(self, method: str) -> None:
        self.patch(method)

    def patch(self, method: str) -> None:
        if self.row.fits(method):
            try:
                patch(self.model, method, ratio=0.5)
            except ValueError as error:
                assert self.offloaded and "forward method was replaced" in str(error), error
                return
            self.method = method

    @rule()
    def unpatch(self) -> None:
        unpatch(self.model)
        self.method = None

    @precondition(lambda self: not self.offloaded)
    @rule(method=st.sampled_from(METHODS))
    def reduced(self, method: str) -> None:
        if self.row.fits(method) and self.depth_stands():
            with reduced(self.model, method, ratio=0.3):
                self.row.outputs(self.model, self.inputs())

    @precondition(lambda self: "quantise" not in self.changes and self.dtype == torch.float32)
    @rule()
    def backward(self) -> None:
        if self.depth_stands():
            sum(t.float().sum() for t in self.row.outputs(self.model, self.inputs())).backward()
            self.model.zero_grad()

    @rule(layer=st.integers(0, 3), grad=st.booleans())
    def stop_in_the_middle(self, layer: int, grad: bool) -> None:
        layers = layers_of(self.model)
        handle = layers[layer % len(layers)].register_forward_pre_hook(fail)
        with torch.set_grad_enabled(grad):
            try:
                self.row.outputs(self.model, self.inputs(1))
            except DeliberateError:
                pass
            except ValueError as error:
                assert not self.depth_stands() and "patch it again" in str(error)
        handle.remove()

    @precondition(lambda self: not self.offloaded)
    @rule(how=st.sampled_from(["deepcopy", "pickle", "save"]))
    def copied(self, how: str) -> None:
        if how == "deepcopy":
            self.model = copy.deepcopy(self.model)
            return
        try:
            text = pickle.dumps(self.model)
        except (AttributeError, TypeError, pickle.PicklingError):  # hooks of transformers, packed parameters
            return
        self.model = pickle.loads(text) if how == "pickle" else loaded(self.model)

    @precondition(lambda self: "quantise" not in self.changes)
    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def to(self, dtype: torch.dtype) -> None:
        if self.dtype == torch.float32:  # there is no way back to the same weights
            self.model, self.dtype = self.model.to(dtype), dtype

    @precondition(lambda self: self.plain and not self.adapted)
    @rule()
    def add_adapters(self) -> None:
        self.apply("lora")

    @precondition(lambda self: self.plain and self.adapted)
    @rule(merge=st.booleans())
    def unload_adapters(self, merge: bool) -> None:
        self.apply("merge" if merge else "unload")

    @precondition(lambda self: self.plain and not self.adapted)
    @rule()
    def quantise(self) -> None:
        self.apply("quantise")

    @precondition(lambda self: self.plain and self.changes.count("cut") < 2)
    @rule()
    def cut(self) -> None:
        self.apply("cut")

    @rule()
    def offload(self) -> None:
        if self.method is None or self.offloaded:
            self.model = onload(self.model)
            self.offloaded = False
        else:
            self.model, self.offloaded = offload(self.model), True

    @precondition(lambda self: self.row.name == "timm_vit")
    @rule(stop=st.integers(1, 4), pooled=st.booleans())
    def own_loop(self, stop: int, pooled: bool) -> None:
        model: Any = self.model
        with torch.no_grad():
            x = model.norm_pre(model._pos_embed(model.patch_embed(self.inputs(2)["x"])))
            try:
                for block in [*model.blocks][:stop]:
                    x = block(x[:1] if pooled and block is model.blocks[1] else x)
            except ValueError as error:
                told = "leave or join" if pooled else "patch it again"
                assert told in str(error) or not self.depth_stands(), error

    @rule()
    def other_model_between(self) -> None:
        images = BY_NAME["timm_vit"].images()
        seen = []
        handle = layers_of(self.model)[0].register_forward_pre_hook(lambda m, a: seen.append(self.other(images)))
        with torch.no_grad():
            outputs_or_words(self.row, self.model, self.inputs())
        handle.remove()
        assert all(torch.equal(output, self.other_expected) for output in seen)

    @rule()
    def two_threads(self) -> None:
        if not self.depth_stands():
            return
        expected = [self.found(seed) for seed in (0, 1)]
        wrong: list[int] = []

        def work(seed: int) -> None:
            wrong.extend(seed for _ in range(2) if not same(self.found(seed), expected[seed]))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def found(self, seed: int = 0) -> list[Tensor] | str:
        return outputs_or_words(self.row, self.model, self.inputs(seed))

    def depth_stands(self) -> bool:
        """Whether the model runs, and does not ask to be patched again."""
        return not isinstance(self.found(), str)

    @invariant()
    def computes_what_the_shortest_way_does(self) -> None:
        if not hasattr(self, "row"):
            return
        found, expected = self.found(), outputs_or_words(self.row, self.shortest(), self.inputs())
        assert not isinstance(expected, str), expected
        if isinstance(found, str):
            assert "cut" in self.changes and "patch it again" in found, found
        else:
            assert same(found, expected)

    def teardown(self) -> None:
        stack._thread.runs.clear()


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def loaded(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def runs_at_all(row: Backbone, changes: list[str], change: str) -> bool:
    """Whether the unpatched model runs after these changes: some attentions read the weights of their projections."""
    model = fresh_model(row)
    for one in [*changes, change]:
        model = Model.changed(model, one)
    try:
        outputs_or_words(row, model, row.inputs())
    except (TypeError, AttributeError, RuntimeError):
        return False
    return True


def machine(examples: int) -> Any:
    limits = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    return type("Sequence", (Model,), {}), limits


@pytest.mark.parametrize("examples", [pytest.param(10, id="200"), pytest.param(100, id="2000", marks=pytest.mark.full)])
def test_sequences_of_changes(examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    kind, limits = machine(examples)
    run_state_machine_as_test(kind, settings=limits)
