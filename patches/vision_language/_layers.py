"""The hooks on the layers of a language model, for rows that leave within it, and the attention that decides which."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenreduce.budget.phase import working
from tokenreduce.forward.language.run import current
from tokenreduce.forward.language.stream import Stream
from tokenreduce.forward.marks import ATTRIBUTE, mark, unmark
from tokenreduce.ops.attention import TILE
from tokenreduce.ops.modes import without_autocast
from tokenreduce.reducers.contract import Ending

NOTED = "tokenreduce"  # the name of an attention that shows how rows attend
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
    """The model's own attention, which shows how rows attend where that decides what leaves next."""
    found = vars(module).get(ATTRIBUTE)
    run = None if found is None else current(found.reduction)
    stream = None if run is None or run.crossing is None else run.crossing.stream
    if stream is not None and found is not None:
        ending = stream.reduction.later[found.layer + 1]
        if isinstance(ending, Ending):
            stream.note_flow(to_columns(stream.visual(), query, key, mask, kwargs["scaling"]), ending)
        else:
            stream.note(last_row(query, key, mask, kwargs["scaling"]))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    own = ALL_ATTENTION_FUNCTIONS.get_interface(getattr(module.config, OWN), eager)
    return own(module, query, key, value, mask, **kwargs)


def last_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """`(B, entries)` in fp32: the attention of the last row, mean over heads; groups of heads share their keys."""
    with working("reducer"), torch.no_grad(), without_autocast(query.device):
        query, key = query[:, :, -1:].float() * scaling, key.float()
        logits = query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].transpose(-2, -1)
        if mask is not None:
            logits = hidden(logits, mask[:, :, None, -1:, :])
        return logits.softmax(-1).mean((1, 2))[:, 0]


def to_columns(columns: Tensor, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """`(B, q)` in fp32: the attention of each row to those of the last entries that `columns (B, q)` names, mean over
    heads. Goes through the rows in tiles."""
    found, rows, past = [], query.shape[2], key.shape[2] - query.shape[2]
    with working("reducer"), torch.no_grad(), without_autocast(query.device):
        columns = columns.to(query.device)
        wanted = torch.cat([columns.new_zeros(len(columns), past), columns], 1)[:, None, None, None]
        key = key.float()[:, :, None].transpose(-2, -1)
        for start in range(0, rows, TILE):
            tile = query[:, :, start : start + TILE].float() * scaling
            logits = tile.unflatten(1, (key.shape[1], -1)) @ key
            if mask is None:
                tile_rows = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device)
                seen = tile_rows.tril(past + start)
            else:
                seen = mask[:, :, None, start : start + TILE]
            logits = hidden(logits, seen)
            found.append(logits.softmax(-1).masked_fill(~wanted, 0).sum(-1).mean((1, 2)))
    return torch.cat(found, 1)


def hidden(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits under a mask of what is seen, or one that is added."""
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()


ALL_ATTENTION_FUNCTIONS.register(NOTED, noted_attention)


def show_attention(attention: Any, reduction: Any, number: int) -> None:
    """Let a layer's attention show how rows attend. Its configuration is copied, as that is what names its function."""
    mark(attention, reduction, number)
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
