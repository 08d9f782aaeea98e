"""What users and other tools do to a model, patched or not: any model of `backbones`, by the adapter that knows it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_submodules
from backbones import Backbone
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tokenreduce.patching.finding import find_backbone


def layers_of(model: nn.Module) -> list[Any]:
    """The layers that reduce."""
    _, backbone, adapter = find_backbone(model)
    return [*adapter.layers(backbone)]


def holder_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the list of layers, and the name of the list."""
    first = layers_of(model)[0]
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) and child[0] is first:
                return module, name
    raise LookupError("no list of layers")


def cut(model: nn.Module, depth: int) -> nn.Module:
    """The model with its first layers only, as timm and others prune."""
    holder, name = holder_of(model)
    setattr(holder, name, getattr(holder, name)[:depth])
    return model


def projections(model: nn.Module) -> list[str]:
    """The names of the linear layers inside the layers that stand for themselves: those in an `nn.MultiheadAttention`
    are only containers of weights."""
    inside = {id(module) for layer in layers_of(model) for module in layer.modules()}
    held = {id(m) for outer in model.modules() if isinstance(outer, nn.MultiheadAttention) for m in outer.modules()}
    return [name for name, m in model.named_modules() if type(m) is nn.Linear and id(m) in inside - held]


def add_lora(model: nn.Module, seed: int = 1) -> nn.Module:
    """Low-rank adapters that change something on all projections of the layers, in place."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=projections(model), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return inject_adapter_in_model(config, model).eval()


def unload_lora(model: nn.Module, merge: bool) -> nn.Module:
    """The base layers again, in place, with the adapters merged into their weights or dropped."""
    adapted = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, module in adapted:
        if merge:
            module.merge()
        outer, _, last = name.rpartition(".")
        setattr(model.get_submodule(outer), last, module.get_base_layer())
    return model


def quantise(model: nn.Module) -> nn.Module:
    """A copy with dynamically quantised linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def offload(model: nn.Module) -> nn.Module:
    """Hooks on every module in accelerate's manner: each forward is replaced, and called from there."""
    for module in [*model.modules()]:
        add_hook_to_module(module, ModelHook())
    return model


def onload(model: nn.Module) -> nn.Module:
    remove_hook_from_submodules(model)
    return model


def first_of(output: Any) -> Tensor:
    """The tokens in what a layer returns."""
    return output[0] if isinstance(output, tuple) else output


def after_layer(model: nn.Module, index: int, change: Any) -> Any:
    """Let `change` stand between a layer and the next: it makes another tensor of what the layer returns."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = change(first_of(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return layers_of(model)[index].register_forward_hook(hook)


def state_of(model: nn.Module) -> list[Any]:
    """All that patching may change, by module."""
    return [
        (name, type(m).__name__, list(m._forward_hooks.values()), sorted(set(vars(m)) - {"_tokenreduce"}))
        for name, m in model.named_modules()
    ]


def runs(backbone: Backbone, model: nn.Module) -> bool:
    """Whether the unpatched model still runs, whatever was done to it."""
    try:
        outputs_or_words(backbone, model, backbone.inputs())
    except Exception:
        return False
    return True


def outputs_or_words(backbone: Backbone, model: nn.Module, inputs: Any) -> list[Tensor] | str:
    """What the model puts out or, where it refuses in words, the words; other errors are raised."""
    try:
        with torch.no_grad():
            return backbone.outputs(model, inputs)
    except (ValueError, TypeError) as error:
        if not type(error).__module__.startswith("tokenreduce"):
            raise
        return str(error)
