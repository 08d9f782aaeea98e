"""Evaluations by name: the model, the data and the head that people name, checked and ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.folders import Data, check_labels, load_data, load_gallery
from tokenreduce.lab.data.photographs import NAME as PHOTOGRAPHS
from tokenreduce.lab.data.samples import TASKS, DenseData
from tokenreduce.lab.quality.classification import classification_lanes, measure_classification
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.engine import teller
from tokenreduce.lab.quality.features import DEFINITIONS, GEOMETRIC, SALIENCY, measure_features, unlabelled_lanes
from tokenreduce.lab.quality.heads import MakeHead, NearestNeighbours, ZeroShot, text_embeddings, trained
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.quality.sharing import UNSHARED, Sharing, image_shards
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shipped import dinov2_small
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.patching.finding import find_backbone

SHOWN = 10  # images that could not be read and are named; JSON files name all
HEADS = ("trained", "knn", "zero-shot", "none")
# The data and the model where the user names none.
DENSE_DATA = {"segmentation": "scenes", "detection": "scenes", "depth": "nyuv2"}
DENSE_MODELS = {"segmentation": "scene_segmenter", "detection": "scene_detector"}
MEANINGS = {
    "segmentation": "change: of mIoU",
    "detection": "change: of AP50",
    "depth": "change: of delta-1; figures are means of the images'",
}


@dataclass(frozen=True)
class Evaluation:
    """What is ready to be measured.

    Args:
        meaning: what the figures mean, in a sentence.
        settings: what led to the rows, as JSON files say it; `images` are those that could be read.
        measure: runs it; rows of arms that the model cannot reach (`refused`) come last.
        remarks: what is to be known of the data, in sentences; more of them once it has run.
    """

    meaning: str
    settings: dict[str, Any]
    measure: Callable[[Progress], list[Row]]
    remarks: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Of the table of rows."""
        head = f", head {self.settings['head']}" if "head" in self.settings else ""
        return f"{self.settings['model']}, {self.settings['images']} images of {self.settings['data']}{head}"


@dataclass(frozen=True)
class Setup:
    """What every evaluation is told; None stands for the model, the data and the batch size that suit the task.

    Args:
        data_dir: where the data lie in their official layout.
        limit: use so many images, spread evenly over the data.
        upright: pictures of class folders are turned as their EXIF orientation says.
        reduced_labels: ADE20K's files hold 0 to 149 and 255.
        sharing: the processes that share the work, and where what is finished is kept.
    """

    model: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    batch_size: int | None = None
    pretrained: bool = True
    device: torch.device | str = "cpu"
    upright: bool = True
    reduced_labels: bool = False
    sharing: Sharing = UNSHARED


@dataclass(frozen=True)
class Head:
    """How features become classes.

    Args:
        kind: "trained", "knn" (DINO), "zero-shot" (CLIP), or "none", which needs no labels and gives no accuracy; None
            stands for "trained" where images have labels and for "none" else.
        gallery: of knn: a folder of class folders instead of the training split.
        gallery_size: of knn: how many images of it; 0 takes all.
        text_embeddings: of zero-shot: a safetensors file.
        text_model: of zero-shot: NAME:PRETRAINED of open_clip.
    """

    kind: str | None = None
    gallery: Path | None = None
    gallery_size: int = 10_000
    text_embeddings: Path | None = None
    text_model: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *HEADS):
            raise unknown("head", str(self.kind), HEADS)


DEFAULT, FITTING = Setup(), Head()


@dataclass(frozen=True)
class Judge:
    """What is measured of images that are loaded.

    Args:
        lanes: of the arms that the model can reach.
        refused: rows of the others.
        measure: from lanes, batches and what tells of the progress to rows.
        told: settings of the head.
    """

    meaning: str
    lanes: Sequence[Any]
    refused: list[Row]
    measure: Callable[..., list[Row]]
    told: dict[str, Any]
    gallery: Data | None = None


def classification(
    arms: Sequence[Arm],
    setup: Setup = DEFAULT,
    head: Head = FITTING,
    *,
    all_images: bool = False,
    workers: int = 0,
) -> Evaluation:
    """Accuracy of the arms on labelled images, and how far their features are from the unpatched model's; of images
    without labels the latter alone.

    Args:
        all_images: all 10,000 test images of Fashion-MNIST instead of 2,000.
        workers: processes that read image folders.

    Raises: ValueError if model, data, head and arms do not fit each other.
    """
    model, batch_size = setup.model or "fashion_vit", setup.batch_size or 100
    data = setup.data or (PHOTOGRAPHS if model == dinov2_small.NAME else "fashion-mnist")
    network = load_model(model, None, setup.pretrained)[0].eval().to(setup.device)
    find_backbone(network)  # the reason comes before those about data that do not fit such a model
    place: dict[str, Any] = {"data_dir": setup.data_dir, "upright": setup.upright}
    read: dict[str, Any] = {"by_name": head.kind in (None, "trained"), "labels": head.kind != "none"}
    images = load_data(data, network, all_images=all_images, limit=setup.limit, **read, **place)
    kind = head.kind or ("trained" if images.class_names else "none")
    encode = partial(batches_of, batch_size=batch_size, workers=workers)
    if kind == "none":
        judge = judge_features(network, arms, model == dinov2_small.NAME and setup.pretrained)
    else:
        judge = judge_answers(network, arms, images, replace(head, kind=kind), encode, place)
    settings = {"model": model, "pretrained": setup.pretrained, "data": data}
    settings |= {"images": len(images), "head": kind, "batch_size": batch_size, **judge.told}
    settings |= {"upright": setup.upright} if not images.in_memory else {}
    remarks = list(images.remarks)

    def measure(progress: Progress) -> list[Row]:
        ledger = setup.sharing.ledger(network, arms, settings | {"data_dir": setup.data_dir})
        read_by = 0 if images.in_memory else workers
        shards = image_shards(images, batch_size, read_by, setup.sharing.team, ledger)
        rows = judge.measure(judge.lanes, shards, teller(progress, len(images)))
        settings.update(images=len(images) - len(images.left_out), left_out=[*images.left_out], remarks=remarks)
        if judge.gallery is not None:
            settings["gallery_images"] = len(judge.gallery) - len(judge.gallery.left_out)
        remarks.extend(unread(images) + (unread(judge.gallery) if judge.gallery is not None else []))
        return rows + judge.refused

    return Evaluation(judge.meaning, settings, measure, remarks)


def judge_features(network: nn.Module, arms: Sequence[Arm], salient: bool) -> Judge:
    """Errors of features alone; `salient` says that the saliency head fits the model."""
    read = dinov2_small.saliency_head().to(next(network.parameters()).device) if salient else None
    lanes, refused = unlabelled_lanes(network, arms, read)
    meaning = "; ".join([DEFINITIONS, *([SALIENCY] if salient else []), GEOMETRIC])
    return Judge(meaning, lanes, refused, measure_features, {})


def judge_answers(
    network: nn.Module,
    arms: Sequence[Arm],
    images: Data,
    head: Head,
    encode: Callable[[Data], Any],
    place: dict[str, Any],
) -> Judge:
    """Accuracy by a head, and errors of features."""
    make_head, told, gallery = choose_head(head, images, network, encode, place)
    lanes, refused = classification_lanes(network, arms, len(images.class_names), make_head)
    return Judge(DEFINITIONS, lanes, refused, measure_classification, told, gallery)


def unread(data: Data | DenseData) -> list[str]:
    """That images were left out, and a sentence for each of the first ones."""
    count, shown = len(data.left_out), list(data.left_out)[:SHOWN]
    first = (
        [f"{count} of {len(data)} images of {data.name} were left out, because they cannot be read:"] if count else []
    )
    return first + shown + ([f"and {count - SHOWN} more"] if count > SHOWN else [])


def batches_of(data: Data, batch_size: int, workers: int) -> Any:
    """Batches of images and labels. Processes pay for decoding files only."""
    return data.batches(batch_size, 0 if data.in_memory else workers)


def choose_head(
    head: Head, images: Data, network: nn.Module, encode: Callable[[Data], Any], place: dict[str, Any]
) -> tuple[MakeHead, dict[str, Any], Data | None]:
    """What makes the head of each model, the settings that are to be told of it, and the gallery, if there is one."""
    if not images.class_names:
        raise InvalidValueError(
            f"the images of {images.name} have no labels, which the head {head.kind} needs: give --head none, or "
            "a folder that holds one folder a class"
        )
    if len(images.class_names) < 2:
        raise InvalidValueError(
            f"{images.name} has one class ({images.class_names[0]}), in which every answer is right; give images of "
            "two classes or more"
        )
    if head.kind == "trained":
        check_labels(images, network)
        return trained, {}, None
    if head.kind == "zero-shot":
        return ZeroShot(text_embeddings(head.text_embeddings, head.text_model, images.class_names)), {}, None
    limit = head.gallery_size or None
    found = load_gallery(images, network, gallery=head.gallery, limit=limit, **place)
    make_head = NearestNeighbours(encode(found), len(images.class_names))
    return make_head, {"gallery": found.name, "gallery_images": len(found), "k": make_head.k}, found


def dense(
    task: str,
    arms: Sequence[Arm],
    setup: Setup = DEFAULT,
    *,
    align: str = "none",
    rounds: int = 0,
) -> Evaluation:
    """Segmentation, detection or depth; see `measure_dense`.

    Raises: ValueError if task, model, data and arms do not fit each other.
    """
    if task not in TASKS:
        raise unknown("dense task", task, TASKS)
    if task == "detection" and find_spec("pycocotools") is None:
        raise InvalidValueError(
            "average precision needs pycocotools, which the extra 'bench' brings: pip install 'tokenreduce[bench]'"
        )
    if setup.model is None and task not in DENSE_MODELS:
        raise InvalidValueError(f"no model for {task} ships with the library; give --model hf:NAME")
    model, data, batch_size = setup.model or DENSE_MODELS[task], setup.data or DENSE_DATA[task], setup.batch_size or 8
    images = load_dense(data, task, setup.data_dir, setup.limit, setup.reduced_labels)
    predictor = load_predictor(model, task, setup.pretrained)
    predictor.module.to(setup.device)
    settings: dict[str, Any] = {"task": task, "model": model, "pretrained": setup.pretrained, "data": images.name}
    settings |= {"images": len(images), "batch_size": batch_size, "rounds": rounds}
    settings |= {"align": align} if task == "depth" else {}
    remarks: list[str] = []

    def measure(progress: Progress) -> list[Row]:
        ledger = setup.sharing.ledger(predictor.module, arms, settings | {"data_dir": setup.data_dir})
        shared: dict[str, Any] = {"team": setup.sharing.team, "ledger": ledger, "progress": progress}
        rows = measure_dense(predictor, arms, images, batch_size, align=align, rounds=rounds, **shared)
        settings.update(images=len(images) - len(images.left_out), left_out=[*images.left_out])
        remarks.extend(unread(images))
        return rows

    return Evaluation(MEANINGS[task], settings, measure, remarks)
