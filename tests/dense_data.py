"""Random pictures with random truth for the dense tasks, and small predictors for them."""

from __future__ import annotations

from typing import Any

import dense_models
import torch
from torch import Tensor, nn

from tokenreduce.lab.data.samples import DenseData

HEAD = {"method", "budget", "options", "images", "tokens_left", "macs", "uncounted", "flops_share", "change"}


def pictures(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    coarse = torch.rand(count, 3, 5, 6) * 255
    return list(nn.functional.interpolate(coarse, (40, 48), mode="bicubic").clamp(0, 255).to(torch.uint8))


def samples(task: str, count: int = 5) -> DenseData:
    """Random truth for random pictures."""
    shown = pictures(count)
    if task == "segmentation":
        targets: Any = [torch.randint(dense_models.CLASSES, (40, 48)) for _ in shown]
        for target in targets:
            target[:5] = 255
    elif task == "depth":
        targets = [1 + 5 * torch.rand(40, 48) for _ in shown]
    else:
        boxes = torch.cat([torch.rand(count, 4, 2) * 20, 20 + torch.rand(count, 4, 2) * 20], 2)
        targets = [{"boxes": box, "labels": torch.randint(1, 6, (4,))} for box in boxes]
    classes = {
        "segmentation": dict.fromkeys(range(5), ""),
        "detection": dict(enumerate(dense_models.NAMES, 1)),
        "depth": {},
    }
    found = [
        {"image": i, "target": t, "path": f"picture {k}"} for k, (i, t) in enumerate(zip(shown, targets, strict=True))
    ]
    return DenseData("random", task, found, classes[task])


MAKERS = {"segmentation": dense_models.segmenter, "detection": dense_models.detector, "depth": dense_models.depth}
HEADLINES = {"segmentation": "miou", "detection": "ap50", "depth": "delta1"}
ALIGN = {"segmentation": "none", "detection": "none", "depth": "inverse"}
