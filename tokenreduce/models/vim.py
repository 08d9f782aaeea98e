"""Vision Mamba (Vim) and the image models of VideoMamba, on any device, for their released weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.errors import unknown
from tokenreduce.models.evaluated import evaluated
from tokenreduce.models.vim_mixer import VimMixer

CLASS_TOKENS = ("middle", "first")


class RmsNorm(nn.Module):
    """Root mean square norm with fp32 statistics, in the type of its weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """`x (..., C)` divided by its root mean square, times the weight."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * self.weight).to(self.weight.dtype)


class VimBlock(nn.Module):
    """`x + mixer(norm(x))`, on one fp32 stream."""

    def __init__(self, width: int, states: int, taps: int, expand: int, halved: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = RmsNorm(width)
        self.mixer = VimMixer(width, states, taps, expand, halved)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """`(B, L, width)` from the stream `x (B, L, width)`."""
        return x + self.dropped(self.mixer(self.norm(x)))

    def dropped(self, y: Tensor) -> Tensor:
        """In training, nothing for a share `drop_path` of the images, more for the others."""
        if not self.training or not self.drop_path:
            return y
        kept = torch.rand(y.shape[0], 1, 1, device=y.device) >= self.drop_path
        return y * kept / (1 - self.drop_path)


class PatchEmbed(nn.Module):
    """Patches `(B, N, width)` of images `(B, C, H, W)`, in raster order; sizes are called as timm calls them."""

    def __init__(self, img_size: int, patch_size: int, stride: int, channels: int, width: int) -> None:
        super().__init__()
        side = (img_size - patch_size) // stride + 1
        self.img_size, self.grid_size = (img_size, img_size), (side, side)
        self.proj = nn.Conv2d(channels, width, patch_size, stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionMamba(nn.Module):
    """A vision state-space model that looks at patches in raster order and back.

    Vim (Zhu et al., ICML 2024, arXiv 2401.09417) has its class token in the middle and averages the directions;
    VideoMamba (Li et al., ECCV 2024, arXiv 2403.06977) has it first and adds them. Keys of the state dictionary are
    those of the released weights; see `load_checkpoint`. It was never run on released weights, which could not be had:
    names, shapes and arithmetic are those of the released code.

    Departure: hidden and residual are one fp32 stream, which is the same sum.

    Args:
        img_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        stride: pixels from one patch to the next; None: `patch_size`.
        in_chans: channels of the images.
        num_classes: classes of the head; 0: none.
        embed_dim: channels of a token.
        depth: number of blocks.
        states: numbers that a scan keeps for each inner channel.
        taps: tokens that the convolution reads.
        expand: inner channels for each channel.
        class_token: "middle" or "first".
        halved: whether directions are averaged; None: where the class token is in the middle.
        drop_path: share of images that skip the last block in training, less before.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 24,
        states: int = 16,
        taps: int = 4,
        expand: int = 2,
        class_token: str = "middle",
        halved: bool | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if class_token not in CLASS_TOKENS:
            raise unknown("class_token", class_token, CLASS_TOKENS)
        self.num_features, self.num_classes = embed_dim, num_classes
        self.pretrained_cfg = evaluated(in_chans, (img_size, img_size))
        self.patch_embed = PatchEmbed(img_size, patch_size, stride or patch_size, in_chans, embed_dim)
        self.grid = self.patch_embed.grid_size
        count = self.grid[0] * self.grid[1]
        self.class_place = count // 2 if class_token == "middle" else 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, embed_dim))
        halved = class_token == "middle" if halved is None else halved
        # The first block never drops, nor does the second: released schedules start with an extra zero.
        rates = [0.0, *torch.linspace(0, drop_path, depth, device="cpu").tolist()]
        self.layers = nn.ModuleList(
            VimBlock(embed_dim, states, taps, expand, halved, rates[layer]) for layer in range(depth)
        )
        self.norm_f = RmsNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.start_weights(depth)

    def start_weights(self, depth: int) -> None:
        """Random weights as in the paper's code: small outputs of deep models."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("out_proj.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                parameter.data.div_(math.sqrt(depth))
            if name == "head.weight":
                nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with the class token at its place and positions, `(B, N + 1, C)` in fp32."""
        x = self.patch_embed(images)
        place = self.class_place
        x = torch.cat([x[:, :place], self.cls_token.expand(x.shape[0], -1, -1), x[:, place:]], 1)
        x = x + self.pos_embed
        return x if x.dtype == torch.float64 else x.float()

    def forward_features(self, images: Tensor) -> Tensor:
        """Normed tokens `(B, N + 1, C)` in the order of the scan, from images `(B, 3, H, W)`."""
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the class token, or what they are computed from; of fewer tokens it stands in their middle, too."""
        x = x[:, (x.shape[1] - 1) // 2 if self.class_place else 0]
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Any = None) -> None:
        """A new head of random weights; 0: none."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def vim_tiny(**options: Any) -> VisionMamba:
    """Vim-Ti: 7.1 M parameters."""
    return VisionMamba(**{"embed_dim": 192, **options})


def vim_small(**options: Any) -> VisionMamba:
    """Vim-S: 25.8 M parameters."""
    return VisionMamba(**{"embed_dim": 384, **options})


def vim_base(**options: Any) -> VisionMamba:
    """Vim-B: 97.6 M parameters."""
    return VisionMamba(**{"embed_dim": 768, **options})


def videomamba_tiny(**options: Any) -> VisionMamba:
    """VideoMamba-Ti for images."""
    return VisionMamba(**{"embed_dim": 192, "class_token": "first", **options})


def videomamba_small(**options: Any) -> VisionMamba:
    """VideoMamba-S for images."""
    return VisionMamba(**{"embed_dim": 384, "class_token": "first", **options})


def videomamba_middle(**options: Any) -> VisionMamba:
    """VideoMamba-M for images."""
    return VisionMamba(**{"embed_dim": 576, "depth": 32, "class_token": "first", **options})
