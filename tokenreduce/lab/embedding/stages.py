"""What Ray runs on its workers: reading a part, and embedding it. Between them a part is one row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenreduce.lab.data.class_folders import SQUARE
from tokenreduce.lab.embedding.pooling import pooled
from tokenreduce.lab.embedding.reading import inputs_of
from tokenreduce.lab.embedding.store import Store
from tokenreduce.lab.pretrained import introduce

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What is to be done, for every part.

    Args:
        shape: `(C, H, W)` of the model's input.
        channels: of a feature.
        about: written into every file.
    """

    store: Store
    transform: Callable[[Image.Image], Tensor]
    upright: bool
    shape: tuple[int, ...]
    channels: int
    pool: str
    batch_size: int
    about: dict[str, Any]


def read(row: Row, work: Work) -> Row:
    """The inputs of one part, as bytes: Ray's own tensors would be cut and padded."""
    number, place = int(row["part"][0]), int(row["place"][0])
    keys, bad, inputs = [], [], []
    if not work.store.path(number).exists():  # else it was written before its worker was lost
        for key, found in inputs_of(work.store.part(place), work.transform, work.upright):
            if isinstance(found, str):
                bad.append((key, found))
            elif tuple(found.shape) != work.shape:
                wrong = f"{key}: the model's transform makes {tuple(found.shape)} of it, not {work.shape}"
                bad.append((key, f"{wrong}; give {SQUARE}, or pictures of one size"))
            else:
                keys.append(key)
                inputs.append(found.float().numpy())
    held = np.stack(inputs).tobytes() if inputs else b""
    return {"part": [number], "keys": [json.dumps(keys)], "bad": [json.dumps(bad)], "inputs": [held]}


class Embedder:
    """A worker that holds the model. A part that was begun by a worker that is lost is done again by another.

    Args:
        model: a reference to it.
    """

    def __init__(self, model: Any, work: Work, device: str) -> None:
        import ray

        self.work, self.device = work, device
        self.model = ray.get(model[0]).eval().to(device)
        introduce(self.model)

    def __call__(self, row: Row) -> Row:
        work, number = self.work, int(row["part"][0])
        keys = json.loads(row["keys"][0])
        if not work.store.path(number).exists():
            features = self.embed(row["inputs"][0], len(keys))
            work.store.write(number, keys, features, json.loads(row["bad"][0]), work.about)
        return {"part": [number]}

    @torch.inference_mode()
    def embed(self, held: bytes, count: int) -> np.ndarray:
        """Features `(count, channels)`."""
        if count == 0:
            return np.zeros((0, self.work.channels), np.float32)
        images = torch.frombuffer(bytearray(held), dtype=torch.float32).view(count, *self.work.shape)
        batches = (
            images[at : at + self.work.batch_size].to(self.device) for at in range(0, count, self.work.batch_size)
        )
        return torch.cat([pooled(self.model, batch, self.work.pool).cpu() for batch in batches]).numpy()
