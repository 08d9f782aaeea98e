"""Predictors: from images of any size to dense predictions of the same size."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.pretrained import PREFIX, load_pretrained
from tokenreduce.lab.quality.embedded import detector, segmenter
from tokenreduce.lab.quality.labels import NONE, match_labels


class Predictor(Protocol):
    """A model with its pre- and post-processing.

    `module` is what gets patched: the measurement runs shallow copies of the predictor with another `module`. A
    predictor must therefore call `self.module(...)` and must not keep parts of it elsewhere. It may have a method
    `fit(data: DenseData)`, called once before the first image, that raises if the data do not suit it.
    """

    module: nn.Module

    def __call__(self, images: Sequence[Tensor]) -> list[Any]:
        """One prediction for each of the uint8 images `(C, H, W)`, on the CPU: a class map `(H, W)` int64; a dict of
        `boxes` `(n, 4)` (left, top, right, bottom, in pixels), `scores` and `labels` `(n,)`; or depth `(H, W)`."""


# How the names of transformers' classes end, and the function of the processor that reads the outputs, by task.
KINDS = {
    "segmentation": (("ForSemanticSegmentation", "ForUniversalSegmentation"), "post_process_semantic_segmentation"),
    "detection": (("ForObjectDetection",), "post_process_object_detection"),
    "depth": (("ForDepthEstimation",), "post_process_depth_estimation"),
}
# Models that ship with the library, by task and name: what makes the predictor, given whether weights are loaded.
SHIPPED: dict[str, dict[str, Callable[[bool], Predictor]]] = {
    "segmentation": {"scene_segmenter": segmenter},
    "detection": {"scene_detector": detector},
    "depth": {},
}


def load_predictor(name: str, task: str, pretrained: bool = True) -> Predictor:
    """The predictor that `name` stands for: a shipped model, or `hf:NAME` for a model or folder of transformers.

    Raises: ValueError if there is none, or it does something else than `task`.
    """
    if task not in KINDS:
        raise unknown("dense task", task, KINDS)
    if name in SHIPPED[task]:
        return SHIPPED[task][name](pretrained)
    if name.startswith(PREFIX):
        found = load_pretrained(name.removeprefix(PREFIX), pretrained)
        return HuggingFacePredictor(found.model, found.processor, task)
    other = next((task for task, models in SHIPPED.items() if name in models), None)
    valid = ", ".join([*SHIPPED[task], "hf:NAME of transformers"])
    what = f"{name} does {other}" if other else f"unknown model {name!r}"
    raise InvalidValueError(f"{what}; valid for {task}: {valid}")


class HuggingFacePredictor:
    """A model of transformers between its image processor and the processor's own post-processing.

    Images of one size run together and others apart, so that a prediction does not depend on the padding that the
    batch's other images would need. Boxes of every score are kept, as average precision wants them.

    Args:
        module: a model for semantic or universal segmentation, object detection or depth estimation.
        processor: the image processor that belongs to its weights.
        task: "segmentation", "detection" or "depth".

    Raises: ValueError if these three do not belong together.
    """

    def __init__(self, module: Any, processor: Any, task: str) -> None:
        endings, reader = KINDS[task]
        name = type(module).__name__
        if not name.endswith(endings):
            raise InvalidValueError(f"{name} does not do {task}; that takes a model ...{' or ...'.join(endings)}")
        if not hasattr(processor, reader):
            has = "no image processor (preprocessor_config.json)" if processor is None else type(processor).__name__
            raise InvalidValueError(f"{name} came with {has}; {task} takes a processor that has {reader}")
        self.module, self.processor, self.task = module.eval(), processor, task
        self.read: Callable[..., Any] = getattr(processor, reader)
        self.table: Tensor | None = None  # the data's class number of each label; None leaves labels as they are

    @property
    def relative(self) -> bool:
        """Whether the configuration says that depth is relative and not in metres."""
        return getattr(self.module.config, "depth_estimation_type", None) == "relative"

    def fit(self, data: DenseData) -> None:
        """From now on labels are the class numbers of `data`.

        Raises: ValueError if the model has other classes.
        """
        if self.task != "depth":
            labels: Mapping[int, str] = self.module.config.id2label
            self.table = match_labels(labels, data)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> list[Any]:
        sizes = defaultdict(list)
        for index, image in enumerate(images):
            sizes[tuple(image.shape[-2:])].append(index)
        predictions: list[Any] = [None] * len(images)
        for size, indices in sizes.items():
            together = self.predict([images[index] for index in indices], size)
            for index, prediction in zip(indices, together, strict=True):
                predictions[index] = prediction
        return predictions

    def predict(self, images: Sequence[Tensor], size: tuple[int, ...]) -> list[Any]:
        """The predictions for images of one `size` (H, W)."""
        colour = [image.expand(3, -1, -1) for image in images]
        device = next(self.module.parameters()).device
        inputs = self.processor(images=colour, return_tensors="pt", input_data_format="channels_first")
        taken = inspect.signature(self.module.forward).parameters
        out = self.module(**{name: place(value, device) for name, value in inputs.items() if name in taken})
        options = {"threshold": 0.0} if self.task == "detection" else {}
        found = self.read(out, target_sizes=[size] * len(images), **options)
        if self.task == "detection":
            return [self.kept({name: value.cpu() for name, value in one.items()}) for one in found]
        if self.task == "depth":
            return [one["predicted_depth"].reshape(size).cpu() for one in found]
        return [one.cpu() if self.table is None else self.table[one.cpu()] for one in found]

    def kept(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Detections of the data's classes."""
        if self.table is None:
            return found
        labels = self.table[found["labels"]]
        real = labels != NONE
        return {"boxes": found["boxes"][real], "scores": found["scores"][real], "labels": labels[real]}


def place(value: Any, device: torch.device) -> Any:
    """Tensors on the device; anything else that a processor returns unchanged."""
    return value.to(device) if isinstance(value, Tensor) else value
