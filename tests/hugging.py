"""What the rows of transformers' models share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from backbones import PATCH, Backbone, Inputs
from torch import Tensor, nn

Build = Callable[[Any], nn.Module]

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": PATCH,
}
LAYERSCALE = {"layerscale_value": 0.5}


def hidden_states(prefix: int, suffix: int, model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The image tokens of every layer's output."""
    states = model(**inputs, output_hidden_states=True).hidden_states[1:]
    return [state[:, prefix : state.shape[1] - suffix] for state in states]


def equal_rows(name: str, prefix: int, model: nn.Module) -> None:
    """Give all image tokens the position of the first, in the parameter `name` `(1, prefix + N, C)` or `(N, C)`."""
    with torch.no_grad():
        table = model.get_parameter(name)
        rows = table[0] if table.ndim == 3 else table
        rows[prefix:] = rows[prefix].clone()


def build(model: str | Build, config: Any) -> nn.Module:
    """The model; classes have names until then, because importing all of them takes seconds."""
    return (getattr(transformers, model) if isinstance(model, str) else model)(config)


def hf(
    name: str, model: str | Build, config: Any, *, last: str, positions: str | None = None, **fields: Any
) -> Backbone:
    """A row; `positions` names the table of position embeddings, prefix rows included."""
    prefix, suffix = fields.get("prefix", 1), fields.get("suffix", 0)
    equal: dict[str, Callable] = (
        {} if positions is None else {"equal_positions": partial(equal_rows, positions, prefix)}
    )
    collect = {"collect": partial(hidden_states, prefix, suffix)}
    return Backbone(name, partial(build, model, config), last, **(equal | collect | fields))
