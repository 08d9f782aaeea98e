"""timm `VisionTransformerSAM`: the image encoder of Segment Anything, with relative positions, rotary embedding or
neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import PatchEmbed, apply_rot_embed_cat
from timm.models.vision_transformer_sam import Attention, Block, VisionTransformerSAM, get_rel_pos
from torch import Tensor, nn

from tokenreduce.forward.noted import note_grid
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import finish

from ..shared.windows import Grid, MapAdapter, MapAttention, MapLayer, as_map, as_tokens, grid_of
from ._blocks import ReducedBlocks, refuse_blocks, refuse_forward


class ReducedSAMBlocks(ReducedBlocks):
    """`ReducedBlocks` of blocks that take and give maps."""

    def tokens(self, reduction: Reduction, x: Tensor) -> Tensor:
        note_grid(reduction, grid_of(x, False), only=True)
        return as_tokens(x, False)

    def finished(self, run: Run, x: Tensor) -> Tensor:
        tokens = finish(run, x, restore=x.ndim == 3)
        return tokens if x.ndim == 4 else as_map(tokens, run.grid, False)


class ReducedSAMBlock(MapLayer, Block):
    """Blocks called one by one may have their outputs collected (`forward_intermediates`)."""

    def collected(self, reduction: Reduction) -> frozenset[int]:
        return frozenset(range(reduction.geometry.depth))

    def attention_line(self, run: Run, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), run=run)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ReducedSAMAttention(MapAttention, Attention):
    q_norm: Any
    k_norm: Any

    def normed(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        shape = queries.shape[:2]  # with heads in the batch the library calls the norms, and hooks expect it
        queries, keys = self.q_norm(queries.flatten(0, 1)), self.k_norm(keys.flatten(0, 1))
        return queries.unflatten(0, shape), keys.unflatten(0, shape)

    def attend(self, run: Run, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        rope: Any = self.rope
        if rope is not None:
            rows = run.rows(rope.get_embed(), queries)
            queries, keys = (apply_rot_embed_cat(part, rows).type_as(part) for part in (queries, keys))
        return super().attend(run, queries, keys)

    def tables(self, grid: Grid) -> tuple[Tensor, Tensor]:
        return get_rel_pos(grid[0], grid[0], self.rel_pos_h), get_rel_pos(grid[1], grid[1], self.rel_pos_w)

    def dropped(self) -> float:
        return self.attn_drop.p if self.training else 0.0

    def projected(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(x))


class TimmSAM(MapAdapter):
    """The neck is made of convolutions: all tokens are always restored for it."""

    name = "timm_sam"
    family = "timm VisionTransformerSAM (the image encoder of Segment Anything)"
    reduced: ClassVar = {Block: ReducedSAMBlock}
    attentions: ClassVar = {Attention: ReducedSAMAttention}
    containers: ClassVar = {nn.Sequential: ReducedSAMBlocks}
    on_tokens = ("patch_embed", "neck")

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformerSAM)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.blocks

    def grid(self, model: Any) -> Grid:
        return tuple(model.patch_embed.grid_size)

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        attn = layer.attn
        return super().captures(model, layer) | {
            "queries": (attn.q_norm, "folded_queries"),
            "keys": (attn.k_norm, "folded_keys"),
            "mean_keys": (attn.k_norm, "folded_mean_keys"),
        }

    def refusals(self, model: Any) -> list[str]:
        if reasons := refuse_blocks(model, ReducedSAMBlocks):
            return reasons
        reasons = super().refusals(model) + refuse_forward(model, VisionTransformerSAM)
        if type(model.patch_embed) is not PatchEmbed:
            reasons.append(
                f"its patch embedding is {type(model.patch_embed).__name__}, only timm's PatchEmbed is known"
            )
        return reasons

    def surrounds(self, model: Any) -> Sequence[nn.Module]:
        return [model.blocks]


ADAPTER = TimmSAM()
