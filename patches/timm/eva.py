"""timm `Eva`: EVA, EVA-02, DINOv3, Perception Encoder and other ViTs with rotary embedding.

Rotary tables, axial `(N, D)` or one `(H, N, D)` a layer, follow the token that represents a merged one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from tokenreduce.budget.geometry import Geometry
from tokenreduce.forward.marks import Mark
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import capturing

from ..shared.adapter import Reads
from ..shared.classes import Classes, refuse_classes
from ..shared.collecting import stop_telling, tell_layers, told_by_others
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.masks import refuse_masks
from ..shared.weights import layered_costs, matrices
from ._biased_qkv import attention, is_hidden, project
from ._blocks import refuse_forward
from ._lines import GammaLines, PostNormLines


class RotaryLayer(ReducedLayer):
    """What both blocks share: attention over the rows of the rotary table that belong to the tokens."""

    attn: Any
    biased_line: Callable[..., Tensor]  # attention, called with the arguments given, and its residual

    def attention_line(
        self,
        run: Run,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        refuse_masks(attn_mask=attn_mask, is_causal=is_causal)
        rows = None if rope is None else run.rows(rope, x)

        def attend(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            q, k = rotated(self.attn, q, rows), rotated(self.attn, k, rows)
            return q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), run.attention_bias(q, torch.float32)

        run.show_attention(attend)
        return self.biased_line(x, rope=rows, attn_mask=run.attention_bias(x))


class ReducedEvaBlock(GammaLines, RotaryLayer, EvaBlock):
    """`EvaBlock`: norms before attention and MLP, LayerScale on both, one or neither."""


class ReducedEvaBlockPostNorm(PostNormLines, RotaryLayer, EvaBlockPostNorm):
    """`EvaBlockPostNorm`: norms after attention and MLP."""


class ReducedEvaAttention(EvaAttention):
    """Shows its values, which no module puts out, in layers that reduce; the library's own forward in all others."""

    _tokenreduce: Mark

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        run = capturing(self._tokenreduce.reduction)
        if run is None:
            return super().forward(x, rope, attn_mask, is_causal)
        q, k, v = project(self, x)
        run.shown.add("values", v)
        q, k = (rotated(self, t, rope).type_as(v) for t in (self.q_norm(q), self.k_norm(k)))
        y = self.norm(attention(self, q, k, v, attn_mask))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))


def rotated(attn: Any, heads: Tensor, rope: Tensor | None) -> Tensor:
    """Queries or keys `(B, H, N, d)` with the rotary embedding on all but the prefix."""
    if rope is None:
        return heads
    start = attn.num_prefix_tokens
    image = apply_rot_embed_cat(heads[:, :, start:], rope, half=attn.rotate_half)
    return torch.cat([heads[:, :, :start], image], 2)


class TimmEva(LayeredAdapter):
    """Adapter for `timm.models.eva.Eva`, and for `kind` in subclasses.

    `known_attention`: what stands for each class of attention where a method reads its values.
    """

    name = "timm_eva"
    family = "timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary embedding)"
    reduced: ClassVar = {EvaBlock: ReducedEvaBlock, EvaBlockPostNorm: ReducedEvaBlockPostNorm}
    kind: ClassVar[Any] = Eva
    attentions: ClassVar[Classes] = {EvaAttention: ReducedEvaAttention}
    known_attention: ClassVar[Classes] = {EvaAttention: ReducedEvaAttention, AttentionRope: AttentionRope}

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, self.kind)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.blocks

    def embedding(self, model: Any) -> Any:
        """The patch embedding."""
        return model.patch_embed

    def grid(self, model: Any) -> tuple[int, ...] | None:
        """The grid of an image of the default size, if it has one."""
        return getattr(model.patch_embed, "grid_size", None)

    def has_class_token(self, model: Any) -> bool:
        return model.cls_token is not None

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        attn = layer.attn
        found = {
            "queries": (attn.q_norm, "queries"),
            "keys": (attn.k_norm, "keys"),
            "mean_keys": (attn.k_norm, "mean_keys"),
        }
        if attn.qkv is None:
            found["values"] = (attn.v_proj, "values")
        elif not hides_values(attn):
            found["values"] = (attn.qkv, "fused_values")
        return found

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [layer.attn] if hides_values(layer.attn) and (wanted is None or "values" in wanted) else []

    def grid_capture(self, model: Any) -> tuple[nn.Module, str] | None:
        return model.patch_embed, "dynamic_grid"

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        attentions = [block.attn for block in model.blocks if hasattr(block, "attn")]
        rotary = [attn for attn in attentions if isinstance(attn, (EvaAttention, AttentionRope))]
        if any(not hasattr(attn, "gate") for attn in rotary):
            reasons.append("its rotary attention is that of timm before 1.0.28; upgrade timm")
        if self.grid(model) is None:
            reasons.append("its patch embedding does not tell how many tokens an image has")
        return reasons + refuse_forward(model, self.kind) + told_by_others(model)

    def refuse_parts(self, model: Any, layers: Sequence[Any]) -> list[str]:
        attentions = [block.attn for block in layers if hasattr(block, "attn")]
        return refuse_classes("attention is", attentions, self.known_attention) or super().refuse_parts(model, layers)

    def lacks(self, model: Any) -> dict[str, str]:
        missing = {}
        if not self.has_class_token(model):
            missing["class_attention"] = "the model has no class token"
        if any(getattr(block.attn, "num_kv_groups", 1) > 1 for block in model.blocks):
            missing["values"] = "its values have fewer heads than its queries"
        return missing

    def geometry(self, model: Any) -> Geometry:
        attn, grid = model.blocks[0].attn, self.grid(model)
        assert grid is not None  # else it was refused
        costs = layered_costs(model, model.blocks, "attn", self.embedding(model), attn.num_heads * attn.head_dim)
        pooled = 0 if model.attn_pool is None else matrices(model.attn_pool.kv)
        return Geometry(
            depth=len(model.blocks),
            prefix=model.num_prefix_tokens,
            suffix=0,
            class_tokens=int(self.has_class_token(model)),
            grid=tuple(grid),
            width=model.embed_dim,
            heads=attn.num_heads,
            head_dim=attn.head_dim,
            costs=dataclasses.replace(costs, fixed=costs.fixed - pooled, per_token=costs.per_token + pooled),
            follows_origin=model.rope is not None,
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        pools = model.attn_pool is not None or model.global_pool not in ("token", "")
        return "tokens" if pools or outer else "protected"

    def install(self, model: Any, reduction: Reduction) -> None:
        super().install(model, reduction)
        tell_layers(model)

    def remove(self, model: Any) -> None:
        stop_telling(model)
        super().remove(model)


def hides_values(attn: Any) -> bool:
    return isinstance(attn, EvaAttention) and is_hidden(attn)


ADAPTER = TimmEva()
