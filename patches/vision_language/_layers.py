"""The hooks on the layers of a language model, for rows that leave within it, and the attention that decides which."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenreduce.forward.language.run import current
from tokenreduce.forward.language.stream import Stream
from tokenreduce.forward.marks import ATTRIBUTE, mark, unmark
from tokenreduce.ops.modes import without_autocast

NOTED = "tokenreduce"  # the name of an attention that shows its last row
OWN = "tokenreduce_implementation"  # where the name of the model's own attention is kept


def enter_layer(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let more rows leave before a layer, or give it the mask of the entries that it has."""
    found = vars(layer).get(ATTRIBUTE)
    run = None if found is None else current(found.reduction)
    crossing = None if run is None else run.crossing
    if found is None or crossing is None:
        return None
    if crossing.stream is not None:
        return go_on(crossing.stream, found.layer, args, kwargs)
    if crossing.later is None:
        return None
    mask = crossing.later.mask(found.layer, kwargs.get("attention_mask"))
    return None if mask is kwargs.get("attention_mask") else (args, kwargs | {"attention_mask": mask})


def go_on(stream: Stream, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of a layer in a forward in which rows leave."""
    if layer in stream.reduction.later:
        x = stream.reduce(layer, args[0] if args else kwargs["hidden_states"], kwargs)
        args, kwargs = ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})
    return args, kwargs | stream.changed


def noted_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """The model's own attention, which shows how the last row attends where that decides what leaves next."""
    found = vars(module).get(ATTRIBUTE)
    run = None if found is None else current(found.reduction)
    stream = None if run is None or run.crossing is None else run.crossing.stream
    if stream is not None:
        stream.note(last_row(query, key, mask, kwargs["scaling"]))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    own = ALL_ATTENTION_FUNCTIONS.get_interface(getattr(module.config, OWN), eager)
    return own(module, query, key, value, mask, **kwargs)


def last_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """`(B, entries)` in fp32: the attention of the last row, mean over heads; groups of heads share their keys."""
    with torch.no_grad(), without_autocast(query.device):
        query, key = query[:, :, -1:].float() * scaling, key.float()
        logits = query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].transpose(-2, -1)
        if mask is not None:
            row = mask[:, :, None, -1:, :]
            logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row.float()
        return logits.softmax(-1).mean((1, 2))[:, 0]


ALL_ATTENTION_FUNCTIONS.register(NOTED, noted_attention)


def show_attention(attention: Any, reduction: Any) -> None:
    """Let an attention show its last row. Its configuration is copied, as that is what names its function."""
    mark(attention, reduction)
    attention.config = copy.copy(attention.config)
    setattr(attention.config, OWN, attention.config._attn_implementation)
    attention.config._attn_implementation_internal = NOTED


def stop_showing(attention: Any, config: Any) -> None:
    """Undo `show_attention`; `config` is that of the model."""
    if hasattr(getattr(attention, "config", None), OWN):
        unmark(attention)
        attention.config = config


def is_changed(attention: Any, config: Any) -> bool:
    """Whether the model was given another attention implementation since."""
    own = getattr(attention.config, OWN, None)
    return own is not None and own != config._attn_implementation
