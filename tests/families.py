"""Backbones of the law suite, one row each: real timm models, random weights, every parameter perturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn

import tokenreduce


def small_vit(**arguments: Any) -> nn.Module:
    defaults = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 7}
    return VisionTransformer(**(defaults | arguments))


def gated_vit() -> nn.Module:
    model = small_vit()
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
    return model


@dataclass(frozen=True)
class Family:
    """A builder and its input size."""

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    refuses: frozenset[str] = field(default_factory=frozenset)

    def images(self, batch: int = 2, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, 3, *self.size, generator=torch.Generator().manual_seed(seed))


def named(name: str, size: int, refuses: frozenset[str] = frozenset(), **arguments: Any) -> Family:
    build = partial(timm.create_model, name, img_size=size, num_classes=arguments.pop("num_classes", 11), **arguments)
    return Family(name, build, (size, size), refuses)


NO_CLASS = frozenset({"evit", "diffrate", "ats", "topk"})
VIDEO = frozenset({"centerclip", "rlt"})  # no model of images carries them
HEADS = frozenset({"dtop"})  # needs a model with auxiliary heads around the backbone
METHODS = [method for method in tokenreduce.methods() if method not in VIDEO | HEADS]
FAMILIES = [
    named("vit_tiny_patch16_224", 64),
    named("deit_small_distilled_patch16_224", 64),
    named("deit3_small_patch16_224", 64),
    named("vit_small_patch14_dinov2", 56),
    named("vit_small_patch14_reg4_dinov2", 56),
    named("vit_base_patch16_clip_224", 64),
    named("vit_base_patch16_siglip_224", 64, NO_CLASS),
    Family("average_pool", partial(small_vit, global_pool="avg", class_token=False), (32, 32), NO_CLASS),
    Family("average_pool_registers", partial(small_vit, global_pool="avg", reg_tokens=2), (32, 32)),
    Family("maximum_pool", partial(small_vit, global_pool="avgmax"), (32, 32)),
    Family("qk_norm", partial(small_vit, qk_norm=True, init_values=0.1), (32, 32)),
    Family("gated", gated_vit, (32, 32)),
    Family("post_norm", partial(small_vit, block_fn=ResPostBlock), (32, 32)),
    Family("non_square", partial(small_vit, img_size=(24, 40)), (24, 40)),
    Family("dynamic_size", partial(small_vit, dynamic_img_size=True), (32, 24)),
]
BY_NAME = {family.name: family for family in FAMILIES}
REFERENCE = ("vit_tiny_patch16_224", "qk_norm")
EVERY_DAY = ("tome", "evit", "pool", "ward")


@cache
def model_of(name: str) -> nn.Module:
    """The family's model in eval mode, shared by all tests of a process: leave it unpatched."""
    torch.manual_seed(0)
    model = BY_NAME[name].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return model
