"""Attention masks that users give to reduced models: honoured where they only hide padding, else refused."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError


def refuse_masks(**arguments: object) -> None:
    """Raise if any of these arguments of a layer, by name, is given."""
    if any(value is not None and value is not False for value in arguments.values()):
        *names, last = arguments
        listed = f"{', '.join(names)} and {last} do" if names else f"{last} does"
        raise InvalidValueError(
            f"{listed} not fit a reduced model: its tokens are no longer those that a mask was made for; call without "
            "a mask, or call tokenreduce.unpatch(model)"
        )


def valid_keys(mask: Tensor, x: Tensor) -> Tensor:
    """`(B, N)`: the tokens of `x (B, N, C)` that a mask `(B, 1, 1 or N, N)`, boolean or additive, leaves visible.

    Raises: ValueError for a mask that is not the same for all queries or adds anything else, which only an eager
    forward can see.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        visible = visible_of(mask)
        keys = visible[:, 0]
        if is_traced() or (bool((visible == keys[:, None]).all()) and adds_nothing(mask, visible)):
            return keys.expand(x.shape[0], -1)
    raise InvalidValueError(
        "this attention_mask does not fit a reduced model: only masks that hide padding, the same for all queries, can "
        "follow the tokens; call without it, or call tokenreduce.unpatch(model)"
    )


def visible_of(mask: Tensor) -> Tensor:
    """`(B, 1 or N, N)`: which tokens a mask, boolean or additive, lets each query see."""
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)[:, 0]


def adds_nothing(mask: Tensor, visible: Tensor) -> bool:
    """Whether a mask leaves the logits of `visible` tokens as they are."""
    return mask.dtype == torch.bool or bool((mask[:, 0][visible] == 0).all())


def is_traced() -> bool:
    """Whether no value of a tensor can be looked at now."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
