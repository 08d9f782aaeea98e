"""What the modules of a model cost: multiply-adds read off the weights that they hold, whatever holds them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from tokenreduce.budget.counting import count_flops
from tokenreduce.budget.geometry import Costs
from tokenreduce.errors import InvalidValueError

KNOWN = {
    "torch",
    "timm",
    "transformers",
    "torchvision",
    "open_clip",
    "tokenreduce",
    "peft",
}  # adapters know their tables


def layered_costs(model: Any, layers: Sequence[Any], attention: str, embedding: nn.Module, width: int) -> Costs:
    """Costs read off the modules: every matrix of a layer works on each token, attention on each pair of tokens.

    `attention` names the layers' attention; what is neither in the layers nor in the patch `embedding` counts once.
    """
    whole = [matrices(layer) for layer in layers]
    inside = [matrices(layer.get_submodule(attention)) for layer in layers]
    counted = {id(m) for part in (*layers, embedding) for m in part.modules()}
    return Costs(
        fixed=sum(matrix_size(m) for m in model.modules() if id(m) not in counted),
        per_token=matrices(embedding),
        attention=tuple(inside),
        pairs=(2 * width,) * len(layers),
        mlp=tuple(total - part for total, part in zip(whole, inside, strict=True)),
    )


def stem_macs(stem: nn.Module, height: int, width: int) -> int:
    """MACs of a patch embedding on one image, for stems with convolutions on other grids than the tokens'."""
    if any(isinstance(part, nn.Conv2d) and part.weight.ndim != 4 for part in stem.modules()):
        raise InvalidValueError(
            "the weights of the patch embedding are not whole (FSDP has them in parts), so that its multiply-adds "
            "cannot be counted; patch the model first, and wrap it then"
        )
    # A copy, so that batch norms in training see no image of ours.
    stem = copy.deepcopy(stem).to("meta")
    channels = next((m.in_channels for m in stem.modules() if isinstance(m, nn.Conv2d)), None)
    dtype = next((weight.dtype for weight in stem.parameters() if weight.is_floating_point()), None)
    if channels is None or dtype is None:
        raise InvalidValueError(
            f"the patch embedding ({type(stem).__name__}) has no convolution of floating-point weights, so that its "
            "multiply-adds cannot be counted; patch with ratio= or r= in place of flops="
        )
    return count_flops(stem, torch.zeros(1, channels, height, width, device="meta", dtype=dtype)).total


def matrices(module: nn.Module) -> int:
    """Multiply-adds a token of all that is inside a module."""
    return sum(matrix_size(part) for part in module.modules())


def matrix_size(module: Any) -> int:
    """Multiply-adds a token of a linear layer or a patch convolution, or of the projections of an
    `nn.MultiheadAttention`, whose output projection is a module of its own; 0 for all others.

    Quantised and parametrised layers count by their sides. One that wraps another (LoRA) is counted by those inside it.
    """
    if isinstance(module, nn.MultiheadAttention) and isinstance(module.in_proj_weight, torch.Tensor):
        return 3 * int(module.embed_dim) ** 2  # also where the weight here is one part of it (FSDP)
    if any(has_sides(part) for part in module.modules() if part is not module):
        return 0
    if is_convolution(module):
        return int(module.in_channels) * int(module.out_channels) * prod(module.kernel_size) // int(module.groups)
    return int(module.in_features) * int(module.out_features) if has_sides(module) else 0


def is_convolution(module: Any) -> bool:
    """Whether it is one on a grid, also a quantised one; embeddings are."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return True
    quantised = type(module).__module__.startswith("torch.ao.nn") and hasattr(module, "kernel_size")
    return quantised and not module.transposed


def has_sides(module: Any) -> bool:
    """Whether a module says that it is a matrix or a convolution."""
    return is_convolution(module) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def wrapped_costs(costs: Costs, model: nn.Module) -> Costs:
    """`costs` with what wrappers of layers add, and the names of weights that nothing counts."""
    return dataclasses.replace(
        costs, fixed=costs.fixed + parametrised_work(model), uncounted=tuple(sorted(uncounted(model)))
    )


def uncounted(model: nn.Module) -> Iterator[str]:
    """The names of parameters that look like matrices in modules that do not say their sides."""
    for name, module in model.named_modules():
        if not name or ".parametrizations." in name or type(module).__module__.split(".")[0] in KNOWN:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not has_sides(module):
                yield f"{name}.{own}"


def parametrised_work(model: nn.Module) -> int:
    """MACs a forward spends on making weights, whatever the images: products of low ranks, norms of matrices."""
    held: list[Any] = [m for m in model.modules() if nn.utils.parametrize.is_parametrized(m)]
    return sum(count_flops(made_beside, (m.parametrizations,)).total for m in held)


def made_beside(parametrizations: Any) -> None:
    """Make the weights of a module by copies of what makes them, which may change with each forward (spectral_norm in
    training) or draw random numbers; what they are made from is not copied."""
    originals = {id(p): p for each in parametrizations.values() for p in each.parameters(recurse=False)}
    devices = {p.device for p in originals.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        for each in copy.deepcopy(parametrizations, dict(originals)).values():
            each()
