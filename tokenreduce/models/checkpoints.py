"""Released weights for the state-space models of this package: read safely, checked in words."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.models.plain_mamba import PlainMamba
from tokenreduce.models.positions import resized_positions, resized_with_class
from tokenreduce.models.vim import VisionMamba

Model = TypeVar("Model", VisionMamba, PlainMamba)
Weights = dict[str, Tensor]
HEAD = "make the model with num_classes as in the file, load, then call reset_classifier"
SHOWN = 3  # keys that a message names


def load_checkpoint(model: Model, path: str | Path, ema: bool = False, resize_positions: bool = False) -> Model:
    """Load weights of `VisionMamba` or `PlainMamba` from a file, in place; returns the model.

    Files of Vim and VideoMamba keep them under `model`, a moving average of them under `model_ema`; those of PlainMamba
    under `state_dict`, with names that begin with `backbone.`. Plain state dictionaries and safetensors are read too.
    Nothing in a file is run. All names and shapes must be those of the model.

    The layouts are those of the released code: it was never run on a released file, as none could be had.

    Args:
        ema: take the moving average, where the file has one.
        resize_positions: resize position embeddings of another grid, bicubic; a class token keeps its own.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `model` is of another class.
        ValueError: a file that cannot be read, or that holds something else; the model is left as it was.
    """
    if not isinstance(model, (VisionMamba, PlainMamba)):
        raise InvalidTypeError(
            f"model is {type(model).__name__}; load_checkpoint is for tokenreduce.models.vim.VisionMamba and "
            "tokenreduce.models.plain_mamba.PlainMamba"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InvalidValueError(
            "the model is on the meta device, which holds no weights; make it on the CPU, or call "
            'model.to_empty(device="cpu") first'
        )
    path = Path(path)
    weights = released_names(chosen(read(path), ema, path), isinstance(model, PlainMamba))
    check_names(weights, model, path)
    if resize_positions:
        weights["pos_embed"] = fitting_positions(weights["pos_embed"], model, path)
    check_shapes(weights, model, path)
    model.load_state_dict(weights)
    return model


def read(path: Path) -> dict[str, Any]:
    """What a file holds: tensors, numbers, names, containers of them, and the `Namespace` of a training script."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    try:
        with torch.serialization.safe_globals([Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InvalidValueError(
            f"{path} holds more than tensors, numbers, names and an argparse.Namespace, or is no file of torch.save "
            f"({str(error).splitlines()[0]}); nothing else is loaded, as it could run code; if you trust the file, "
            "save its weights alone with safetensors"
        ) from error
    except (EOFError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise InvalidValueError(f"{path} is no file of torch.save: {reason}; download it again") from error
    if not isinstance(found, dict):
        raise InvalidValueError(f"{path} holds a {type(found).__name__}; it must hold a dictionary of weights")
    return found


def chosen(found: dict[str, Any], ema: bool, path: Path) -> Weights:
    """The weights among what a file holds."""
    known = ("model_ema",) if ema else ("model", "state_dict")
    weights = next((found[key] for key in known if isinstance(found.get(key), Mapping)), None)
    if weights is None and not ema and all(isinstance(value, Tensor) for value in found.values()):
        weights = found
    if weights is None:
        averaged = "a moving average under model_ema" if ema else "weights under model or state_dict, or tensors alone"
        hint = "; leave ema=True out" if ema else ""
        raise InvalidValueError(f"{path} has the keys {few(found)}; needed: {averaged}{hint}")
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd or not weights:
        raise InvalidValueError(f"the weights in {path} are not all tensors: {few(odd) or 'there are none'}")
    return dict(weights)


def released_names(weights: Weights, plain: bool) -> Weights:
    """The weights by the names of our models: without the prefix of a wrapper, and of PlainMamba without the second set
    `ema_*`, which its training keeps beside the other."""
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if not plain:
        return weights
    own = {name: value for name, value in weights.items() if not name.startswith("ema_")}
    return {name.removeprefix("backbone."): value for name, value in own.items()}


def check_names(weights: Weights, model: nn.Module, path: Path) -> None:
    """Raise unless the names are those of the model."""
    needed = model.state_dict()
    missing = [name for name in needed if name not in weights]
    others = [name for name in weights if name not in needed]
    if not missing and not others:
        return
    kind, found = type(model).__name__, family(weights)
    if found and found != kind:
        raise InvalidValueError(
            f"{path} holds weights of {found}, and the model is a {kind}; make the model that the file is for"
        )
    depth, layers = len(model.layers), count_layers(weights)  # type: ignore[arg-type]
    said = [f"{len(missing)} of {len(needed)} weights are missing, {few(missing)}"] if missing else []
    said += [f"{len(others)} are not of this model, {few(others)}"] if others else []
    if layers and layers != depth:
        said.append(f"it has {layers} layers and the model has {depth}")
    elif all(name.startswith("head.") for name in (*missing, *others)):
        said.append(HEAD)
    raise InvalidValueError(f"{path} does not fit this {kind}: {'; '.join(said)}")


def check_shapes(weights: Weights, model: nn.Module, path: Path) -> None:
    """Raise unless the shapes are those of the model."""
    needed = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name, shape in needed.items() if weights[name].shape != shape]
    if not wrong:
        return
    shown = ", ".join(f"{n} {tuple(weights[n].shape)} instead of {tuple(needed[n])}" for n in wrong[:SHOWN])
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    if wrong == ["pos_embed"] and weights["pos_embed"].shape[2:] == needed["pos_embed"][2:]:
        hint = "it is for images of another size or stride: give resize_positions=True"
    elif all(name.startswith("head.") for name in wrong):
        hint = HEAD
    else:
        hint = "make the model of the size that the file is for"
    raise InvalidValueError(f"{path} does not fit this {type(model).__name__}: {shown}{more}; {hint}")


def fitting_positions(table: Tensor, model: VisionMamba | PlainMamba, path: Path) -> Tensor:
    """The position embeddings of a file, whose grid is square, for the model's grid."""
    class_tokens = int(isinstance(model, VisionMamba))
    if table.shape == model.pos_embed.shape:
        return table
    side = isqrt(max(0, table.shape[1] - class_tokens)) if table.ndim == 3 else 0
    if side == 0 or side**2 + class_tokens != table.shape[1]:
        raise InvalidValueError(
            f"pos_embed in {path} is {tuple(table.shape)}, which is no square grid"
            f"{' and a class token' if class_tokens else ''}, so that it cannot be resized; make the model of its size"
        )
    if isinstance(model, PlainMamba):
        return resized_positions(table, (side, side), model.grid)
    return resized_with_class(table, (side, side), model.grid, model.class_place > 0)


def family(weights: Weights) -> str:
    """The class of model whose weights these look like; empty if none."""
    names = " ".join(weights)
    if ".mamba.conv2d." in names:
        return "PlainMamba"
    return "VisionMamba" if ".mixer.conv1d_b." in names else ""


def count_layers(weights: Weights) -> int:
    """How many `layers.N` there are."""
    return len({name.split(".")[1] for name in weights if name.startswith("layers.")})


def few(names: Any) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
