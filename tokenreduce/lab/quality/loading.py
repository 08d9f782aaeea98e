"""What a classification needs before any method is known: the model, the images and the head that people name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.folders import Data, check_labels, load_data, load_gallery
from tokenreduce.lab.data.photographs import NAME as PHOTOGRAPHS
from tokenreduce.lab.journal import digest
from tokenreduce.lab.quality.classification import classification_lanes, measure_classification
from tokenreduce.lab.quality.features import DEFINITIONS, GEOMETRIC, SALIENCY, measure_features, unlabelled_lanes
from tokenreduce.lab.quality.heads import MakeHead, NearestNeighbours, ZeroShot, text_embeddings, trained
from tokenreduce.lab.quality.sharing import UNSHARED, Sharing
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped import dinov2_small
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.patching.finding import find_backbone

HEADS = ("trained", "knn", "zero-shot", "none")
FASHION = "fashion-mnist"
GALLERY_SIZE = 10_000


@dataclass(frozen=True)
class Setup:
    """What every evaluation is told; None stands for the model, the data and the batch size that suit the task.

    Args:
        data_dir: where the data lie in their official layout.
        limit: use so many images, spread evenly over the data.
        upright: pictures of class folders are turned as their EXIF orientation says.
        reduced_labels: ADE20K's files hold 0 to 149 and 255.
        sharing: the processes that share the work, and where what is finished is kept.
        image_size: of classification: the side of the square input, None for the model's own.
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
    image_size: int | None = None


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
    gallery_size: int = GALLERY_SIZE
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


@dataclass(frozen=True)
class Loaded:
    """Model, images and head, checked, before any method is known.

    Args:
        encode: from data to batches of images and labels.
        place: where data lie and how they are read.
        salient: whether the saliency head fits the model.
    """

    network: nn.Module
    images: Data
    head: Head
    settings: dict[str, Any]
    encode: Callable[[Data], Any]
    place: dict[str, Any]
    salient: bool

    def judge(self, arms: Sequence[Arm]) -> Judge:
        """What measures these arms.

        Raises: ValueError if head and images do not fit each other, or the model can reach none of the arms.
        """
        if self.head.kind == "none":
            return judge_features(self.network, arms, self.salient)
        return judge_answers(self.network, arms, self.images, *self.chosen)

    @cached_property
    def chosen(self) -> tuple[MakeHead, dict[str, Any], Data | None]:
        """What `choose_head` gives, once: texts are encoded, and a gallery is listed, for all that is measured."""
        return choose_head(self.head, self.images, self.network, self.encode, self.place)


def load(setup: Setup = DEFAULT, head: Head = FITTING, *, all_images: bool = False, workers: int = 0) -> Loaded:
    """Model, images and head of a classification; arguments and errors as in `classification`."""
    model, batch_size = setup.model or "fashion_vit", setup.batch_size or 100
    data = setup.data or (PHOTOGRAPHS if model == dinov2_small.NAME else FASHION)
    network = load_model(model, setup.image_size, setup.pretrained)[0].eval().to(setup.device)
    find_backbone(network)  # the reason comes before those about data that do not fit such a model
    place: dict[str, Any] = {"data_dir": setup.data_dir, "upright": setup.upright}
    read: dict[str, Any] = {"by_name": head.kind in (None, "trained"), "labels": head.kind != "none"}
    images = load_data(data, network, all_images=all_images, limit=setup.limit, **read, **place)
    kind = head.kind or ("trained" if images.class_names else "none")
    refuse_unused(head, kind, data, all_images)
    encode = partial(batches_of, batch_size=batch_size, workers=workers)
    settings = {"model": model, "pretrained": setup.pretrained, "data": data}
    settings |= {"images": len(images), "head": kind, "batch_size": batch_size}
    settings |= {"upright": setup.upright} if not images.in_memory else {}
    settings |= {"all_images": all_images or setup.data_dir is not None} if data == FASHION else {}
    settings |= {"image_size": setup.image_size} if setup.image_size else {}
    salient = model == dinov2_small.NAME and setup.pretrained
    return Loaded(network, images, replace(head, kind=kind), settings, encode, place, salient)


def judge_features(network: nn.Module, arms: Sequence[Arm], salient: bool) -> Judge:
    """Errors of features alone; `salient` says that the saliency head fits the model."""
    read = dinov2_small.saliency_head().to(next(network.parameters()).device) if salient else None
    lanes, refused = unlabelled_lanes(network, arms, read)
    meaning = "; ".join([DEFINITIONS, *([SALIENCY] if salient else []), GEOMETRIC])
    return Judge(meaning, lanes, refused, measure_features, {})


def refuse_unused(head: Head, kind: str, data: str, all_images: bool) -> None:
    """Raise for what was given and would not be used."""
    foreign = {"--gallery": head.gallery is not None, "--gallery-size": head.gallery_size != GALLERY_SIZE}
    unused = [(name, "knn") for name, given in foreign.items() if given and kind != "knn"]
    foreign = {"--text-embeddings": head.text_embeddings is not None, "--text-model": head.text_model is not None}
    unused += [(name, "zero-shot") for name, given in foreign.items() if given and kind != "zero-shot"]
    for name, user in unused:
        raise InvalidTypeError(
            f"{name} is for --head {user}, and the head here is {kind}; give that, or leave {name} out"
        )
    if all_images and data != FASHION:
        raise InvalidTypeError(f"--all-images is for {FASHION}, and the data here are {data}; leave it out")
    if all(foreign.values()):
        raise InvalidTypeError("--text-model and --text-embeddings both say what classes are; leave one of them out")


def judge_answers(
    network: nn.Module,
    arms: Sequence[Arm],
    images: Data,
    make_head: MakeHead,
    told: dict[str, Any],
    gallery: Data | None,
) -> Judge:
    """Accuracy by a head, and errors of features."""
    lanes, refused = classification_lanes(network, arms, len(images.class_names), make_head)
    return Judge(DEFINITIONS, lanes, refused, measure_classification, told, gallery)


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
        text = text_embeddings(head.text_embeddings, head.text_model, images.class_names)
        given = str(head.text_embeddings or head.text_model)
        return ZeroShot(text), {"text": given, "text_digest": digest(text)}, None
    limit = head.gallery_size or None
    found = load_gallery(images, network, gallery=head.gallery, limit=limit, **place)
    make_head = NearestNeighbours(encode(found), len(images.class_names))
    return make_head, {"gallery": found.name, "gallery_images": len(found), "k": make_head.k}, found
