"""What families of transformers share whose self-attention takes no mask: its forward is restated with additive logits,
which go through the layer's attention as an argument of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenreduce.forward.run import Run

from ._layers import HuggingFaceAdapter, PretrainedLayer


class BiasedSelfAttention:
    """The forward of a self-attention with additive logits `bias`; goes in front of its class. `eager` is the attention
    of the class's own file."""

    eager: ClassVar[Callable[..., Any]]
    config: Any
    query: Any
    key: Any
    value: Any
    attention_head_size: int
    all_head_size: int
    scaling: float
    dropout_prob: Any
    is_causal: bool
    training: bool

    def forward(self, *args: Any, bias: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Any]:
        if bias is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        (hidden_states,) = args
        heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        keys = self.key(hidden_states).view(heads).transpose(1, 2)
        values = self.value(hidden_states).view(heads).transpose(1, 2)
        queries = self.query(hidden_states).view(heads).transpose(1, 2)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.eager)
        context, attention = function(
            self,
            queries,
            keys,
            values,
            bias,
            is_causal=self.is_causal,
            scaling=self.scaling,
            dropout=self.dropout_prob if self.training else 0.0,
            **kwargs,
        )
        return context.reshape(*context.shape[:-2], self.all_head_size), attention


class UnmaskedLayer(PretrainedLayer):
    """The two lines of the layers around such a self-attention."""

    layernorm_before: Any
    layernorm_after: Any
    attention: Any
    intermediate: Any
    output: Any

    def attention_line(self, run: Run, x: Tensor, **kwargs: Any) -> Tensor:
        bias = run.attention_bias(x)
        sizes = {} if bias is None else {"bias": bias}
        return self.attention(self.layernorm_before(x), **sizes, **kwargs) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(x)), x)


class UnmaskedAdapter(HuggingFaceAdapter):
    """An adapter for models of such layers."""

    layers_at = "encoder.layer"
    projections: ClassVar = {
        "queries": "attention.query",
        "keys": "attention.key",
        "values": "attention.value",
    }

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [layer.attention.attention]
