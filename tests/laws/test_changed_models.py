"""Law: a model that changes after it was patched computes what patching the changed model would, or says in words what
happened."""

from __future__ import annotations

import copy
from collections.abc import Callable

import backbone_checks as checks
import pytest
import torch
from backbones import BY_NAME, ROWS, Backbone, fresh_model
from changing import (
    add_lora,
    cut,
    holder_of,
    layers_of,
    offload,
    onload,
    outputs_or_words,
    projections,
    quantise,
    runs,
    state_of,
    unload_lora,
)
from choosing import MAIN, SAMPLE, every_backbone, pairs
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import tokenreduce
from tokenreduce import patch, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
Change = Callable[[nn.Module], nn.Module]


def is_first(backbone: Backbone) -> bool:
    """Whether the row is the first of its adapter."""
    return any(backbone is rows[0] for rows in ROWS)


def merged(model: nn.Module) -> nn.Module:
    return unload_lora(add_lora(model), merge=True)


def unloaded(model: nn.Module) -> nn.Module:
    return unload_lora(add_lora(model), merge=False)


def normed(model: nn.Module) -> nn.Module:
    for name in projections(model):
        parametrizations.weight_norm(model.get_submodule(name))
    return model


CHANGES: dict[str, Change] = {
    "lora": add_lora,
    "merged": merged,
    "unloaded": unloaded,
    "quantised": quantise,
    "normed": normed,
    "twice": lambda model: quantise(merged(model)),
}


def check_alike(backbone: Backbone, method: str, change: Change, must_run: bool = True) -> None:
    inputs = backbone.inputs()
    if not runs(backbone, change(fresh_model(backbone))):
        return
    expected = patch(change(fresh_model(backbone)), method, ratio=0.5)
    changed = change(patch(fresh_model(backbone), method, ratio=0.5))
    found = outputs_or_words(backbone, changed, inputs)
    if must_run:
        assert not isinstance(found, str), found
        assert checks.same(found, outputs_or_words(backbone, expected, inputs))
    unpatch(changed), unpatch(expected)
    assert checks.same(outputs_or_words(backbone, changed, inputs), outputs_or_words(backbone, expected, inputs))
    assert [kind for _, kind, *_ in state_of(changed)] == [kind for _, kind, *_ in state_of(expected)]


@pytest.mark.parametrize("change", CHANGES)
@pairs(first=("tome",), main=SAMPLE, where=lambda row: row.traceable)
def test_parts_that_change_after_patching(backbone: Backbone, method: str, change: str) -> None:
    check_alike(backbone, method, CHANGES[change])


@pairs(first=("kmeans",), main=SAMPLE)
def test_budgets_follow_what_layers_cost(backbone: Backbone, method: str) -> None:
    """A budget of multiply-adds is spread over the model as it is, in both orders and after adapters are gone."""
    inputs = backbone.inputs()
    model = patch(fresh_model(backbone), method, flops=0.85)
    before = tokenreduce.report(model).tokens
    expected = patch(add_lora(fresh_model(backbone)), method, flops=0.85)
    add_lora(model)
    assert checks.same(outputs_or_words(backbone, model, inputs), outputs_or_words(backbone, expected, inputs))
    assert tokenreduce.report(model).tokens == tokenreduce.report(expected).tokens
    unload_lora(model, merge=False)
    outputs_or_words(backbone, model, inputs)
    assert tokenreduce.report(model).tokens == before


@pytest.mark.parametrize("name", ["timm_vit_short", "torchvision_vit"])
def test_copies_that_never_ran_are_exported(name: str) -> None:
    """Also where costs of a stem are counted on a copy of it, which an export cannot make."""
    row = BY_NAME[name]
    model = add_lora(patch(fresh_model(row), "kmeans", flops=0.85))
    for each in (copy.deepcopy(model), patch(copy.deepcopy(model), "kmeans", flops=0.85)):
        program = torch.export.export(each, (row.images(),), strict=False)
        assert program.module()(row.images()).isfinite().all()


@pairs(first=("evit", "ward"), main=tokenreduce.methods("encoder"))
def test_adapters_added_after_patching_are_read(backbone: Backbone, method: str) -> None:
    check_alike(backbone, method, add_lora)


@pairs(first=("tome", "evit"), main=SAMPLE)
def test_adapters_taken_off_after_patching(backbone: Backbone, method: str) -> None:
    inputs = backbone.inputs()
    for merge in (True, False):
        model = patch(add_lora(fresh_model(backbone)), method, ratio=0.5)
        backbone.outputs(model, inputs)
        unload_lora(model, merge)
        expected = patch(unload_lora(add_lora(fresh_model(backbone)), merge), method, ratio=0.5)
        assert checks.same(outputs_or_words(backbone, model, inputs), outputs_or_words(backbone, expected, inputs))


@pairs(everywhere=("tome",), main=SAMPLE)
def test_layers_cut_after_patching(backbone: Backbone, method: str) -> None:
    """Counts of `r` do not depend on the layers behind; those of a budget do, and are refused."""
    inputs = backbone.inputs()
    depth = len(layers_of(fresh_model(backbone)))
    one = checks.reducing_layers(fresh_model(backbone))[0]
    budget = {"schedule": tokenreduce.Schedule.keep({one: backbone.count // 2})}
    if one == depth - 1 or not runs(backbone, cut(fresh_model(backbone), depth - 1)):
        return
    right = outputs_or_words(backbone, patch(cut(fresh_model(backbone), depth - 1), method, **budget), inputs)
    model = cut(patch(fresh_model(backbone), method, **budget), depth - 1)
    found = outputs_or_words(backbone, model, inputs)
    assert isinstance(found, str) or checks.same(found, right)
    assert checks.same(outputs_or_words(backbone, patch(model, method, **budget), inputs), right)


@every_backbone(is_first)
def test_budgets_that_a_cut_changes_are_refused(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    depth = len(layers_of(model))
    if len(checks.reducing_layers(model)) < 2 or depth != len(getattr(*holder_of(model))):
        return
    if not runs(backbone, cut(fresh_model(backbone), depth - 1)):
        return
    cut(patch(model, "tome", flops=0.85), depth - 1)
    found = outputs_or_words(backbone, model, backbone.inputs())
    assert isinstance(found, str) and "patch it again" in found, found


def rebuilt(holder: nn.Module, name: str, make: Callable[[list[nn.Module]], list[nn.Module]]) -> nn.Module:
    layers = getattr(holder, name)
    made = make([*layers])
    return type(layers)(made) if isinstance(layers, nn.ModuleList) else type(layers)(*made)


LISTS = {
    "deleted": (lambda layers: [layers[0], *layers[2:]], "block 1 of . is gone"),
    "replaced": (lambda layers: [layers[0], nn.Identity(), *layers[2:]], "block 1 is a Identity that was put there"),
    "repeated": (lambda layers: [layers[0], layers[0], *layers[1:]], "block 1 is block 0 again"),
    "swapped": (lambda layers: [layers[1], layers[0], *layers[2:]], "the blocks are in another order: 1, 0"),
    "copied": (lambda layers: [layers[0], copy.deepcopy(layers[1]), *layers[2:]], "block 1 is a .* put there since"),
    "added": (lambda layers: [*layers, copy.deepcopy(layers[-1])], "that was put there since"),
}


@pytest.mark.parametrize("change", LISTS)
@every_backbone(is_first)
def test_lists_of_layers_that_change_say_what_happened(backbone: Backbone, change: str) -> None:
    model, inputs = fresh_model(backbone), backbone.inputs()
    holder, name = holder_of(model)
    if len(layers_of(model)) != len(getattr(holder, name)):
        return  # further layers follow, which the model counts from the end
    if len(layers_of(model)) < 3:
        return
    make, words = LISTS[change]
    if change == "deleted":
        other = fresh_model(backbone)
        setattr(holder_of(other)[0], name, rebuilt(*holder_of(other), make))
        if not runs(backbone, other):
            return
    backbone.outputs(model, inputs)  # transformers adds hooks of its own in the first call
    patch(model, "tome", ratio=0.5)
    before = getattr(holder, name)
    setattr(holder, name, rebuilt(holder, name, make))
    with pytest.raises(ValueError, match=words) as raised:
        backbone.outputs(model, inputs)
    assert "checkpoint" not in str(raised.value)
    setattr(holder, name, before)
    assert isinstance(outputs_or_words(backbone, model, inputs), list)
    unpatch(model)


@every_backbone(is_first)
def test_shared_layers_are_refused_before_anything_changes(backbone: Backbone) -> None:
    model = fresh_model(backbone)
    holder, name = holder_of(model)
    setattr(holder, name, rebuilt(holder, name, lambda layers: [layers[0], layers[0], *layers[2:]]))
    if len({type(layer) for layer in layers_of(model)}) > 1:
        return
    before = state_of(model)
    with pytest.raises(ValueError, match=r"block 0 and block 1 are one and the same module.*copy\.deepcopy"):
        patch(model, "tome", ratio=0.5)
    assert state_of(model) == before and not [m for m in model.modules() if "_tokenreduce" in vars(m)]


def reduces(backbone: Backbone, model: nn.Module) -> bool:
    """Whether a patched model that has not run yet reduces when it does."""
    outputs_or_words(backbone, model, backbone.inputs())
    return bool(tokenreduce.report(model).maps)


@every_backbone(is_first)
def test_undoing_under_the_hooks_of_other_tools(backbone: Backbone) -> None:
    """Tools that replace forwards keep the ones that they found."""
    inputs = backbone.inputs()
    plain = outputs_or_words(backbone, fresh_model(backbone), inputs)
    model = offload(patch(fresh_model(backbone), "tome", ratio=0.5))
    assert reduces(backbone, model)
    unpatch(model)
    assert checks.same(outputs_or_words(backbone, model, inputs), plain)
    onload(model)
    assert checks.same(outputs_or_words(backbone, model, inputs), plain)
    assert reduces(backbone, patch(model, "tome", ratio=0.5))
    assert checks.same(outputs_or_words(backbone, unpatch(model), inputs), plain)


@every_backbone(is_first)
def test_undoing_is_refused_before_its_first_step(backbone: Backbone) -> None:
    """As FSDP and parametrizations do, whose classes are made of the module's own."""
    model = fresh_model(backbone)
    patch(model, "tome", ratio=0.5)
    reduced = outputs_or_words(backbone, model, backbone.inputs())
    last = layers_of(model)[-1]
    kind = type(last)
    last.__class__ = type(f"Sharded{kind.__name__}", (kind,), {})
    before = state_of(model)
    for undo in (unpatch, lambda model: patch(model, "evit" if backbone.fits("evit") else "ward", ratio=0.5)):
        with pytest.raises(ValueError, match=f"Sharded{kind.__name__}"):
            undo(model)
        assert state_of(model) == before
    assert checks.same(outputs_or_words(backbone, model, backbone.inputs()), reduced)
    last.__class__ = kind
    assert unpatch(model) is model and type(last) is not kind


def test_a_forward_that_somebody_replaced_is_named() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    own = model.blocks[1].forward
    model.blocks[1].forward = lambda x: own(x)
    with pytest.raises(ValueError, match=r"the forward of blocks.1 was replaced \(.*test_changed_models\)"):
        unpatch(model)
    del model.blocks[1].forward
    unpatch(model)


@pytest.mark.parametrize("name", ["torchvision_vit", "open_clip_vit"])
def test_a_parametrised_attention_runs_and_keeps_the_patch(name: str) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    inputs = backbone.inputs()
    attention = next(m for m in layers_of(model)[0].modules() if isinstance(m, nn.MultiheadAttention))
    patch(model, "tome", ratio=0.5)
    expected = outputs_or_words(backbone, model, inputs)
    parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    assert checks.same(outputs_or_words(backbone, model, inputs), expected)
    with pytest.raises(ValueError, match="has become a ParametrizedReducedMultiheadAttention"):
        unpatch(model)
    assert checks.same(outputs_or_words(backbone, model, inputs), expected)
    parametrize.remove_parametrizations(attention, "in_proj_weight")
    unpatch(model)
    assert type(attention) is nn.MultiheadAttention
