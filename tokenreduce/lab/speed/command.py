"""What to type to time a patch of one's own model on one's own machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {torch.float32: "", torch.bfloat16: " --dtype bfloat16", torch.float16: " --dtype float16"}


def bench_command(model: nn.Module, input: Tensor, method: str, flops: float) -> str:
    """The `tokenreduce bench` command if that can build the model by name, else the call of `compare`."""
    name, own = _name_and_shape(model)
    shape = tuple(input.shape[1:])
    square = len(shape) == len(own) == 3 and shape[0] == own[0] and shape[1] == shape[2]
    if not square or input.dtype not in DTYPES or input.device.type not in ("cpu", "cuda"):
        arm = f'[Arm("{method}", flops={flops})]'
        return f"from tokenreduce.lab.speed import Arm, compare; compare(model, input, {arm})"
    size = "" if shape == own else f" --image-size {shape[1]}"
    device = "" if input.device.type == "cpu" else f" --device {input.device}"
    words = f"tokenreduce bench --model {name} --method {method} --flops {flops} --batch-size {len(input)}"
    return words + size + device + DTYPES[input.dtype]


def _name_and_shape(model: Any) -> tuple[str, tuple[int, ...]]:
    """The model's name on the command line, and the image shape of the model that this name builds; empty if it has no
    name there. What ships says it itself (`command_line`)."""
    shipped: tuple[str, tuple[int, ...]] | None = getattr(model, "command_line", None)
    if shipped is not None:
        return shipped
    made_by_timm = getattr(model, "pretrained_cfg", None) or {}
    if made_by_timm.get("architecture"):
        return made_by_timm["architecture"], tuple(made_by_timm["input_size"])
    config, name = getattr(model, "config", None), getattr(model, "name_or_path", "")
    side = getattr(config, "image_size", None)
    if not name or not isinstance(side, int):
        return "", ()
    return f"hf:{name}", (getattr(config, "num_channels", 3), side, side)
