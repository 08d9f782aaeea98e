"""timm `VisionTransformer`: ViT, DeiT, DeiT-3, DINOv2, registers, CLIP and SigLIP towers.

Attention is never copied: sizes go in through `attn_mask`, keys and queries come out of hooks on `k_norm` and `q_norm`,
and only the two residual lines of each block are restated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.flops import count_flops
from tokenreduce.reduction import Costs, Geometry, Reduction
from tokenreduce.run import capturing, close, note_grid, open_run, record, run_for
from tokenreduce.tokens import ATTENTION

from .base import Adapter


class ReducedBlocks(nn.Sequential):
    """The blocks called as a whole (`forward_features`): tokens stay reduced between them."""

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self[0]
        reduction, layer = first._tokenreduce
        if layer > 0:  # model.blocks[6:](x): the blocks find out whether they may run apart from those before
            return super().forward(x)
        run = open_run(reduction, x, taps=False)
        if run is None:
            return super().forward(x)
        try:
            x = super().forward(x)
            record(run)
            return run.restore(x) if reduction.restore else x
        finally:
            close(run)


class ReducedForward:
    """The forward of a block with the reduction between its two residual lines, which a block class restates."""

    _tokenreduce: tuple[Reduction, int]
    attention_line: Callable[[Tensor, Tensor | None], Tensor]
    mlp_line: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        reduction, layer = self._tokenreduce
        run = run_for(reduction, layer, x)
        if run is None:
            return super().forward(x, **given_masks(attn_mask, is_causal))  # type: ignore[misc]
        refuse_masks(attn_mask, is_causal)
        x = run.reduce(layer, run.enter(x), "pre")
        x = self.attention_line(x, run.attention_bias(x))
        x = self.mlp_line(run.reduce(layer, x, "mid"))
        return run.leave(layer, run.reduce(layer, x, "post"))


class ReducedBlock(ReducedForward, Block):
    """`Block`: norms in front of attention and MLP, LayerScale."""

    def attention_line(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=bias)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ReducedResPostBlock(ReducedForward, ResPostBlock):
    """`ResPostBlock`: norms behind attention and MLP."""

    def attention_line(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return x + self.drop_path1(self.norm1(self.attn(x, attn_mask=bias)))

    def mlp_line(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(self.mlp(x)))


REDUCED: dict[type[nn.Module], type[nn.Module]] = {Block: ReducedBlock, ResPostBlock: ReducedResPostBlock}
ORIGINAL = {reduced: original for original, reduced in REDUCED.items()} | {ReducedBlocks: nn.Sequential}


def given_masks(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """Only the arguments that were given: timm before 1.0.21 has no `is_causal`."""
    return {k: v for k, v in (("attn_mask", attn_mask), ("is_causal", is_causal)) if v is not None and v is not False}


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise InvalidValueError(
            "attn_mask and is_causal do not fit a reduced model: its tokens are no longer those the mask was made for; "
            "call without a mask, or call tokenreduce.unpatch(model)"
        )


def capture_keys(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    run = capturing(module._tokenreduce)
    if run is not None:
        run.captured["keys"] = output


def capture_mean_keys(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    run = capturing(module._tokenreduce)
    if run is not None:  # here the keys are still in the cache
        run.captured["mean_keys"] = output.detach().float().mean(1)


def capture_queries(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    run = capturing(module._tokenreduce)
    if run is not None:
        run.captured["queries"] = output


def capture_values(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    run = capturing(module._tokenreduce)
    if run is not None:
        values = output.unflatten(-1, (3, run.reduction.geometry.heads, -1))[:, :, 2]
        run.captured["values"] = values.transpose(1, 2)


def capture_grid(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    note_grid(module._tokenreduce, tuple(module.dynamic_feat_size(tuple(args[0].shape[-2:]))))


HOOKS = {
    "mean_keys": capture_mean_keys,
    "keys": capture_keys,
    "queries": capture_queries,
    "values": capture_values,
    "grid": capture_grid,
}


class TimmViT(Adapter):
    """Adapter for `timm.models.vision_transformer.VisionTransformer` and its subclasses."""

    name = "timm_vit"
    family = "timm VisionTransformer (ViT, DeiT, DeiT-3, DINOv2, registers, CLIP and SigLIP towers)"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, VisionTransformer)

    def refusals(self, model: Any) -> list[str]:
        reasons = []
        if type(model.blocks) not in (nn.Sequential, ReducedBlocks) or len(model.blocks) == 0:
            reasons.append(f"its blocks are a {type(model.blocks).__name__}, not an nn.Sequential of blocks")
        odd = {type(b).__name__ for b in model.blocks if type(b) not in REDUCED and type(b) not in ORIGINAL}
        if odd:
            known = ", ".join(c.__name__ for c in REDUCED)
            reasons.append(
                f"its blocks are of class {', '.join(sorted(odd))} (known: {known}), or another tool has changed them: "
                "apply tokenreduce first"
            )
        elif any(type(b.attn) is not Attention for b in model.blocks):
            reasons.append(f"its attention is {type(model.blocks[0].attn).__name__}, only timm's Attention is known")
        if any("forward" in vars(m) for b in model.blocks for m in (b, getattr(b, "attn", b))):
            reasons.append("a forward method was replaced on its blocks by another tool; undo that first")
        if type(model).forward_features is not VisionTransformer.forward_features:
            reasons.append(
                f"{type(model).__name__} has a forward_features of its own, which may treat tokens by position"
            )
        if not hasattr(model.patch_embed, "grid_size") or not hasattr(model.patch_embed, "dynamic_feat_size"):
            reasons.append(
                f"its patch embedding {type(model.patch_embed).__name__} does not tell the grid of its tokens"
            )
        if getattr(model, "grad_checkpointing", False):
            reasons.append("gradient checkpointing is on; call model.set_grad_checkpointing(False) first")
        return reasons

    def provides(self, model: Any) -> dict[str, str]:
        missing = {}
        if not model.has_class_token:
            missing["class_attention"] = "the model has no class token"
        return missing

    def geometry(self, model: Any) -> Geometry:
        attn = model.blocks[0].attn
        return Geometry(
            depth=len(model.blocks),
            prefix=model.num_prefix_tokens,
            suffix=0,
            class_tokens=int(model.has_class_token) + int(hasattr(model, "dist_token")),
            grid=tuple(model.patch_embed.grid_size),
            width=model.embed_dim,
            heads=attn.num_heads,
            head_dim=attn.head_dim,
            costs=model_costs(model),
        )

    def pools(self, model: Any) -> bool:
        return model.attn_pool is not None or model.global_pool not in ("token", "")

    def prop_attn(self, model: Any) -> bool:
        # Weights from masked auto-encoding were measured to lose accuracy with the bias (ToMe, table on MAE models).
        config = getattr(model, "pretrained_cfg", None) or {}
        return "mae" not in str(config.get("tag", "")).split("_")

    def install(self, model: Any, reduction: Reduction) -> None:
        needs = (reduction.reducer.required() | reduction.reducer.uses) - self.provides(model).keys()
        if needs & ATTENTION:
            needs |= {"queries", "keys"}
        hooked = [(model.patch_embed, capture_grid)]
        for layer, block in enumerate(model.blocks):
            block._tokenreduce = (reduction, layer)
            block.__class__ = REDUCED[type(block)]
            attn = block.attn
            inside = {"queries": attn.q_norm, "keys": attn.k_norm, "mean_keys": attn.k_norm, "values": attn.qkv}
            hooked += [(inside[need], HOOKS[need]) for need in inside if need in needs]
        for module, hook in hooked:
            module._tokenreduce = reduction
            module.register_forward_hook(hook)
        model.blocks.__class__ = ReducedBlocks

    def remove(self, model: Any) -> None:
        model.blocks.__class__ = nn.Sequential
        touched = [model.patch_embed]
        for block in model.blocks:
            block.__class__ = ORIGINAL[type(block)]
            touched += [block, block.attn.k_norm, block.attn.q_norm, block.attn.qkv]
        for module in touched:
            vars(module).pop("_tokenreduce", None)
            for key in [key for key, hook in module._forward_hooks.items() if hook in HOOKS.values()]:
                del module._forward_hooks[key]

    @contextmanager
    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> Iterator[nn.Module]:
        originals = [type(block) for block in model.blocks]
        if any(original is not Block for original in originals):
            raise InvalidValueError("the free-slicing limit is measured on unpatched pre-norm blocks only")
        for block, count in zip(model.blocks, counts, strict=True):
            block._tokenreduce_slice = (model.num_prefix_tokens + count, placement)
            block.__class__ = SlicedBlock
        try:
            yield model
        finally:
            for block, original in zip(model.blocks, originals, strict=True):
                block.__class__ = original
                del block._tokenreduce_slice


class SlicedBlock(Block):
    """`Block` that cuts tokens off for nothing, where a reducer would act."""

    _tokenreduce_slice: tuple[int, str]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        count, placement = self._tokenreduce_slice
        x = x[:, :count] if placement == "pre" else x
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x[:, :count] if placement == "mid" else x
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x[:, :count] if placement == "post" else x


def model_costs(model: Any) -> Costs:
    """Costs read off the modules: every matrix of a block works on each token, attention on each pair of tokens."""
    width = [block.attn.num_heads * block.attn.head_dim for block in model.blocks]
    embed = model.patch_embed
    if type(embed) is PatchEmbed:
        embedding = sum(matrix_size(m) for m in embed.modules())
    else:  # convolutions on other grids than the tokens': only counting tells
        weight = next(embed.parameters())
        channels = next(m.in_channels for m in embed.modules() if isinstance(m, nn.Conv2d))
        images = torch.zeros(1, channels, *embed.img_size, device=weight.device, dtype=weight.dtype)
        embedding = count_flops(embed, images).total // max(1, embed.num_patches)
    pool = model.attn_pool
    kv = matrix_size(pool.kv) if pool is not None and hasattr(pool, "kv") else 0
    heads = [
        m for name, child in model.named_children() if name not in ("patch_embed", "blocks") for m in child.modules()
    ]
    return Costs(
        fixed=sum(matrix_size(m) for m in heads) - kv,
        per_token=embedding + kv,
        attention=tuple(sum(matrix_size(m) for m in block.attn.modules()) for block in model.blocks),
        pairs=tuple(2 * w for w in width),
        mlp=tuple(sum(matrix_size(m) for m in block.mlp.modules()) for block in model.blocks),
    )


def matrix_size(module: Any) -> int:
    """Multiply-adds a token of a linear layer (quantised ones too) or of a patch convolution."""
    if isinstance(module, nn.Conv2d):
        return module.weight.numel()
    if hasattr(module, "in_features") and hasattr(module, "out_features") and not list(module.children()):
        return int(module.in_features) * int(module.out_features)
    return 0


ADAPTER = TimmViT()
