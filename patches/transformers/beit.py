"""transformers BEiT: relative position bias, one table a layer or one for all, whose entries follow the token that
represents a merged one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.beit.modeling_beit import BeitForImageClassification, BeitLayer, BeitModel

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.masks import valid_keys
from ..shared.position_bias import pair_logits
from ._layers import HuggingFaceAdapter, PretrainedLayer, check_implementation, implementation


class ReducedBeitLayer(PretrainedLayer, BeitLayer):
    def valid(
        self, reduction: Reduction, x: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        """The model passes its shared bias to the layers as the mask, where padding cannot be told from bias. While it
        is traced the library makes a mask even where nothing is padded."""
        check_implementation(implementation(self))
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if attention_mask is None or (tracing and self.shares_bias):
            return None
        if tracing:
            return valid_keys(attention_mask, x)
        mask = attention_mask
        if self.shares_bias and mask.shape[0] == 1 and mask.is_floating_point() and not hides(mask):
            return None
        raise InvalidValueError(
            "attention_mask does not fit a reduced BEiT, in which a mask stands for position bias; "
            "call without it, or call tokenreduce.unpatch(model)"
        )

    @property
    def shares_bias(self) -> bool:
        return self.attention.config.use_shared_relative_position_bias

    def attention_line(
        self,
        run: Run,
        x: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        table = attention_mask if self.shares_bias else None
        if self.relative_position_bias is not None:
            assert resolution is not None
            side: Any = self.patch_size
            window = (resolution[0] // side, resolution[1] // side)
            own = self.relative_position_bias(window, interpolate_pos_encoding, dim_size=window[0] * window[1] + 1)
            table = own if table is None else own + table
        y = self.attention(self.layernorm_before(x), attention_mask=pair_logits(run, table, x), **kwargs)[0]
        return self.drop_path(self.lambda_1 * self.dropout(y)) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.drop_path(self.lambda_2 * self.dropout(self.mlp(self.layernorm_after(x)))) + x


def hides(mask: Tensor) -> bool:
    """Whether an additive mask takes tokens out."""
    return bool((mask < torch.finfo(mask.dtype).min / 2).any())


class TransformersBeit(HuggingFaceAdapter):
    name = "transformers_beit"
    models = (BeitModel,)
    reduced: ClassVar = {BeitLayer: ReducedBeitLayer}
    reads_class_token = (BeitForImageClassification,)
    follows_origin = True

    def pools(self, model: Any) -> bool:
        return model.pooler is not None and model.config.use_mean_pooling


ADAPTER = TransformersBeit()
