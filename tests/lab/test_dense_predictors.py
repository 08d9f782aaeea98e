"""Models of transformers as predictors, from folders with random weights, and from their labels to the data's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_models
import pytest
import torch
from transformers import YolosForObjectDetection

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.quality.labels import match_labels
from tokenreduce.lab.quality.predictors import HuggingFacePredictor, load_predictor


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def predictor(make: Callable[[Path], Path], task: str, folder: Path) -> Any:
    return load_predictor(f"hf:{make(folder)}", task)


@pytest.mark.parametrize("make", [dense_models.segmenter, dense_models.eomt])
def test_segmentation_has_the_size_of_the_image(make: Any, tmp_path: Path) -> None:
    model = predictor(make, "segmentation", tmp_path)
    shown = images((40, 50), (37, 32), (40, 50))
    found = model(shown)
    assert [tuple(one.shape) for one in found] == [(40, 50), (37, 32), (40, 50)]
    assert all(one.dtype == torch.int64 and one.min() >= 0 and one.max() < dense_models.CLASSES for one in found)
    assert len(found[0].unique()) > 1
    for image, one in zip(shown, found, strict=True):
        assert torch.equal(model([image])[0], one), "the batch's other images do not matter"


def test_segmentation_is_what_the_model_says(tmp_path: Path) -> None:
    model = predictor(dense_models.segmenter, "segmentation", tmp_path)
    [image] = images((32, 32))
    pixels = (image[None] / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits = torch.nn.functional.interpolate(model.module(pixels).logits, (32, 32), mode="bilinear")
    agreement = (model([image])[0] == logits.argmax(1)[0]).double().mean()
    assert agreement > 0.99


@pytest.mark.parametrize("make", [dense_models.detector, dense_models.lw_detr])
def test_detection_in_pixels(make: Any, tmp_path: Path) -> None:
    model = predictor(make, "detection", tmp_path)
    shown = images((40, 50), (64, 32))
    small, large = model(shown)[0], model([torch.nn.functional.interpolate(shown[0][None], scale_factor=2)[0]])[0]
    assert small.keys() == {"boxes", "scores", "labels"} and small["boxes"].shape == (len(small["scores"]), 4)
    assert len(small["scores"]) >= 5, "boxes of every score"
    assert (small["boxes"][:, 2:] >= small["boxes"][:, :2]).all() and small["boxes"].max() > 2
    assert (large["boxes"].median() / small["boxes"].median()).item() == pytest.approx(2, rel=0.2)


def test_depth_has_the_size_of_the_image(tmp_path: Path) -> None:
    model = predictor(dense_models.depth, "depth", tmp_path)
    found = model(images((40, 50), (64, 32)))
    assert [tuple(one.shape) for one in found] == [(40, 50), (64, 32)]
    assert all(one.dtype == torch.float32 and one.std() > 0 for one in found) and model.relative


def test_grey_images_become_colour_images(tmp_path: Path) -> None:
    model = predictor(dense_models.segmenter, "segmentation", tmp_path)
    [image] = images((32, 32))
    assert torch.equal(model([image[:1]])[0], model([image[:1].expand(3, -1, -1)])[0])


def data(classes: dict[int, str], task: str = "detection") -> DenseData:
    return DenseData("some data", task, [], classes)


def test_weights_in_half_precision_are_measured_in_float32(tmp_path: Path) -> None:
    folder = dense_models.detector(tmp_path)
    YolosForObjectDetection.from_pretrained(folder).half().save_pretrained(folder)
    model = load_predictor(f"hf:{folder}", "detection")
    assert model.module.dtype == torch.float32 and len(model(images((32, 32)))[0]["scores"]) >= 5


def test_labels_by_name() -> None:
    labels = {0: "N/A", 1: "Motorbike", 2: "TV", 3: "traffic_light", 4: "unicorn"}
    table = match_labels(labels, data({3: "traffic light", 90: "motorcycle", 72: "tv"}))
    assert table.tolist() == [-1, 90, 72, 3, -1]


def test_labels_without_names() -> None:
    unnamed = {i: f"LABEL_{i}" for i in range(3)}
    assert match_labels(unnamed, data({1: "a", 5: "b", 90: "c"})).tolist() == [1, 5, 90], "as many: in order"
    more = {i: f"LABEL_{i}" for i in range(6)}
    assert match_labels(more, data({1: "a", 5: "b"})).tolist() == [-1, 1, -1, -1, -1, 5], "more: the numbers themselves"
    assert match_labels({0: "wall", 1: "sky"}, data({0: "", 1: ""}, "segmentation")).tolist() == [0, 1]
    # One real name: labels are not just numbers.
    with pytest.raises(
        InvalidValueError, match="the model has 2 classes"
    ):  # one real name: labels are not just numbers
        match_labels({0: "LABEL_0", 1: "sky"}, data({0: "tree", 1: "lake"}))


@pytest.mark.parametrize(
    ("labels", "classes", "task", "sentence"),
    [
        ({0: "cat", 1: "dog"}, {1: "person", 2: "cup"}, "detection", "it has no 'person' and 1 more; give a model"),
        (
            {0: "cat", 1: "dog"},
            {1: "cat", 2: "cup"},
            "detection",
            "the model has 2 classes (cat, dog, ...), some data has 2",
        ),
        (
            {0: "LABEL_0"},
            {1: "cat"} | {2: "cup"},
            "detection",
            "the model has 1 classes (LABEL_0, ...), some data has 2",
        ),
        (
            {0: "a", 1: "b", 2: "c"},
            {0: "", 1: ""},
            "segmentation",
            "the model has 3 classes (a, b, c, ...), some data has 2;",
        ),
        (
            {0: "a", 1: "b", 2: "c"},
            {0: "a", 1: "b"},
            "segmentation",
            "the model has 3 classes (a, b, c, ...), some data",
        ),
    ],
)
def test_labels_that_do_not_fit(labels: Any, classes: Any, task: str, sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(sentence)):
        match_labels(labels, data(classes, task))


def test_predictions_have_the_datas_numbers(tmp_path: Path) -> None:
    shown = images((40, 50))
    model = predictor(dense_models.detector, "detection", tmp_path)
    own = model(shown)[0]
    names = list(dense_models.NAMES)
    model.fit(data({90: names[1], 7: names[0]}))
    found = model(shown)[0]
    kept = own["labels"] < 2
    assert torch.equal(found["boxes"], own["boxes"][kept]) and torch.equal(found["scores"], own["scores"][kept])
    assert found["labels"].tolist() == [{0: 7, 1: 90}[label] for label in own["labels"][kept].tolist()]
    assert 0 < int(kept.sum()) < len(kept)


def test_models_that_do_not_fit_the_task(tmp_path: Path) -> None:
    folder = dense_models.segmenter(tmp_path)
    with pytest.raises(
        InvalidValueError, match=r"DPTForSemanticSegmentation does not do depth; that takes a model \.\.\.For"
    ):
        load_predictor(f"hf:{folder}", "depth")
    found = load_predictor(f"hf:{folder}", "segmentation")
    with pytest.raises(InvalidValueError, match="came with no image processor"):
        HuggingFacePredictor(found.module, None, "segmentation")
    with pytest.raises(InvalidValueError, match="unknown model 'resnet18'; valid for depth: hf:NAME of transformers"):
        load_predictor("resnet18", "depth")
    with pytest.raises(InvalidValueError, match="unknown dense task 'pose'"):
        load_predictor(f"hf:{folder}", "pose")
