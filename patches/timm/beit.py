"""timm `Beit`: BEiT and BEiTv2, with relative position bias, one table a block or one for all.

Attention is restated while tokens are reduced: the library's makes the bias of all tokens inside, and no module in it
returns keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from tokenreduce.budget.geometry import Geometry
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ..shared.adapter import Reads
from ..shared.collecting import stop_telling, tell_layers, told_by_others
from ..shared.hooks import show_heads
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.position_bias import pair_logits
from ..shared.weights import layered_costs
from ._biased_qkv import attention, project
from ._blocks import refuse_forward
from ._lines import GammaLines


class ReducedAttention(Attention):
    """The library's own forward where it is called without a run."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None, run: Run | None = None) -> Tensor:
        if run is None:
            return super().forward(x, shared_rel_pos_bias)
        q, k, v = project(self, x)
        if isinstance(run, Run) and run.may_reduce(run.next_layer):
            show_heads(run, q, k, v)
        bias = pair_logits(run, self.table(shared_rel_pos_bias), x)
        return self.proj_drop(self.proj(attention(self, q, k, v, None if bias is None else bias.to(q.dtype))))

    def table(self, shared: Tensor | None) -> Tensor | None:
        """The bias of all the input's tokens in pairs, `(1, H, N, N)`."""
        if shared is not None and shared.ndim == 3:
            shared = shared[None]
        if self.relative_position_bias_table is None:
            return shared
        own = self._get_rel_pos_bias()
        return own if shared is None else own + shared


class ReducedBlock(GammaLines, ReducedLayer, Block):
    def attention_line(self, run: Run, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        return self.biased_line(x, shared_rel_pos_bias=shared_rel_pos_bias, run=run)


class TimmBeit(LayeredAdapter):
    """Adapter for `timm.models.beit.Beit`."""

    name = "timm_beit"
    family = "timm Beit (BEiT, BEiTv2)"
    reduced: ClassVar = {Block: ReducedBlock}
    attentions: ClassVar = {Attention: ReducedAttention}

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Beit)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.blocks

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        return [layer.attn]

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        return {}  # its attention shows them

    def grid_capture(self, model: Any) -> tuple[nn.Module, str]:
        return model.patch_embed, "dynamic_grid"

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        return reasons + refuse_forward(model, Beit) + told_by_others(model)

    def lacks(self, model: Any) -> dict[str, str]:
        return {}

    def geometry(self, model: Any) -> Geometry:
        attn = model.blocks[0].attn
        width = attn.proj.in_features
        return Geometry(
            depth=len(model.blocks),
            prefix=model.num_prefix_tokens,
            suffix=0,
            class_tokens=1,
            grid=tuple(model.patch_embed.grid_size),
            width=model.embed_dim,
            heads=attn.num_heads,
            head_dim=width // attn.num_heads,
            costs=layered_costs(model, model.blocks, "attn", model.patch_embed, width),
            follows_origin=True,
        )

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "tokens" if model.global_pool not in ("token", "") or outer else "protected"

    def install(self, model: Any, reduction: Reduction) -> None:
        super().install(model, reduction)
        tell_layers(model)

    def remove(self, model: Any) -> None:
        stop_telling(model)
        super().remove(model)


ADAPTER = TimmBeit()
