"""An unpatched model in which tokens are hidden as keys from the attention of some layers: the reference for dropping
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SOFTMAX = (Tensor.softmax, torch.softmax, F.softmax)
Bias = dict[int, Tensor]


class HiddenKeys(TorchFunctionMode):
    """Adds `bias[l]`, logits `(B, N)` of the keys, to the attention of layer l, in whichever way a library attends:
    by the fused function, by `nn.MultiheadAttention` or by a softmax of its own.

    `layer` is the layer that runs now, `counted` how often attention was changed in each layer.
    """

    def __init__(self, bias: Bias) -> None:
        super().__init__()
        self.bias, self.layer, self.counted = bias, -1, Counter[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        bias = self.bias.get(self.layer)
        if bias is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            queries, keys, values, *rest = args
            mask = rest.pop(0) if rest else kwargs.pop("attn_mask", None)
            added = spread(bias, queries).to(queries.dtype)
            mask = added if mask is None else as_logits(mask, queries.dtype) + added
            args = (queries, keys, values, mask, *rest)
        elif func is F.multi_head_attention_forward:
            assert kwargs["key_padding_mask"] is None
            kwargs["key_padding_mask"] = bias
        elif func in SOFTMAX:
            args = (args[0] + spread(bias, args[0]), *args[1:])
        else:
            return func(*args, **kwargs)
        self.counted[self.layer] += 1
        return func(*args, **kwargs)


def spread(bias: Tensor, heads: Tensor) -> Tensor:
    """`bias (B, N)` for logits of `heads`, which are `(B, H, ., .)` or `(B H, ., .)`."""
    if heads.ndim == 4:
        return bias[:, None, None, :]
    return bias.repeat_interleave(heads.shape[0] // bias.shape[0], 0)[:, None, :]


def as_logits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An attention mask as additive logits; in a boolean one True takes part."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


@contextmanager
def watched(layers: list[nn.Module], seen: Callable[[int, Any], None], bias: Bias | None = None) -> Iterator[None]:
    """What each of `layers` returns goes to `seen`; keys are hidden by `bias`, in each of its layers exactly once."""
    mode = HiddenKeys(bias or {})

    def enter(layer: int) -> None:
        mode.layer = layer

    def leave(layer: int, output: Any) -> None:
        mode.layer = -1
        seen(layer, output)

    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda module, args, index=index: enter(index)))
        handles.append(layer.register_forward_hook(lambda module, args, output, index=index: leave(index, output)))
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
    assert mode.counted == dict.fromkeys(mode.bias, 1)
