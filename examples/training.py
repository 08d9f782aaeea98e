"""What the scripts that train the shipped models share: the split of the training photographs, and the optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenreduce.lab.data import fashion_mnist

HELD_OUT = 5000  # training photographs that watch progress


def split_photos(folder: Path, limit: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of "train" and of the held-out "val", always the same; `limit`: of "train", so many."""
    photos, classes = fashion_mnist.load("train", folder)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:][:limit]
    return {"train": (photos[train], classes[train]), "val": (photos[held_out], classes[held_out])}


def optimizers(model: nn.Module, lr: float, is_matrix: Callable[[str], bool]) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for everything else.

    Args:
        is_matrix: says of a parameter's name whether Muon takes it, if it has two axes.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and is_matrix(name)]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
