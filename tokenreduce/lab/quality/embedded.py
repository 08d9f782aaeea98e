"""The scenes and the dense models that ship with the library, as `DenseData` and `Predictor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.data.samples import DenseData, Sample
from tokenreduce.lab.shipped.scenes import scene_detector, scene_segmenter

COUNT = 500


@dataclass(frozen=True)
class SceneSamples:
    """Scenes as samples of a task."""

    made: scenes.Scenes
    task: str

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> Sample:
        target = self.made.masks[index] if self.task == "segmentation" else self.made.objects(index)
        return {"image": self.made.images[index], "target": target, "path": f"scene {index}"}


def load_scenes(task: str, folder: Path | None = None, count: int = COUNT, seed: int = 0) -> DenseData:
    """`count` scenes of the shipped test photographs, or of all test photographs of Fashion-MNIST in `folder`."""
    made = scenes.load(count, "test", fashion_mnist.find(folder) if folder else fashion_mnist.SUBSET, seed)
    names = dict(enumerate(scenes.CLASSES))
    if task == "detection":
        del names[0]
    return DenseData("scenes", task, SceneSamples(made, task), names)


class ScenePredictor:
    """A shipped model: `run` maps the module and a batch `(B, 1, 80, 80)` of uint8 images to predictions."""

    def __init__(self, module: nn.Module, run: Callable[[nn.Module, Tensor], Sequence[Any]]) -> None:
        self.module, self.run = module.eval(), run

    def fit(self, data: DenseData) -> None:
        """Raise unless the data are scenes."""
        if data.name != "scenes":
            raise InvalidValueError(f"the shipped models know scenes only, not {data.name}; give --model hf:NAME")

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Any]:
        device = next(self.module.parameters()).device
        return list(self.run(self.module, torch.stack(list(images)).to(device)))


def segment(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Class maps `(H, W)`."""
    return module(scenes.normalise(images)).argmax(1).cpu().unbind()


def detect(module: nn.Module, images: Tensor) -> Sequence[dict[str, Tensor]]:
    """Boxes, scores and labels of each image."""
    return [{name: value.cpu() for name, value in one.items()} for one in module(list(images / 255))]


def segmenter(pretrained: bool) -> ScenePredictor:
    """The shipped segmenter."""
    return ScenePredictor(scene_segmenter(pretrained), segment)


def detector(pretrained: bool) -> ScenePredictor:
    """The shipped detector."""
    return ScenePredictor(scene_detector(pretrained), detect)
