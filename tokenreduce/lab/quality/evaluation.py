"""Evaluations by name: the model, the data and the head that people name, checked and ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.folders import Data
from tokenreduce.lab.data.samples import TASKS, DenseData
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.engine import teller
from tokenreduce.lab.quality.loading import DEFAULT, FITTING, Head, Setup, load
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.quality.sharing import image_shards
from tokenreduce.lab.rows import Progress, Row

SHOWN = 10  # images that could not be read and are named; JSON files name all
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
    loaded = load(setup, head, all_images=all_images, workers=workers)
    images, judge = loaded.images, loaded.judge(arms)
    settings = loaded.settings | judge.told
    remarks = list(images.remarks)

    def measure(progress: Progress) -> list[Row]:
        sharing = setup.sharing
        hidden = unsaid(setup, getattr(loaded.network, "processor", None), images.class_names, head.gallery)
        ledger = sharing.ledger(loaded.network, arms, settings | hidden)
        shards = image_shards(images, settings["batch_size"], workers, sharing.team, ledger)
        rows = judge.measure(judge.lanes, shards, teller(progress, len(images)))
        settings.update(images=len(images) - len(images.left_out), left_out=[*images.left_out], remarks=remarks)
        if judge.gallery is not None:
            settings["gallery_images"] = len(judge.gallery) - len(judge.gallery.left_out)
        remarks.extend(unread(images) + (unread(judge.gallery) if judge.gallery is not None else []))
        return rows + judge.refused

    return Evaluation(judge.meaning, settings, measure, remarks)


def unsaid(setup: Setup, processor: Any, classes: Any, gallery: Path | None = None) -> dict[str, Any]:
    """What figures depend on and `settings` do not say: where the data lie, their classes, and how a processor of
    transformers makes inputs of them."""
    given = [Path(one) for one in (setup.data, setup.data_dir, gallery) if one is not None]
    folders = [str(one.resolve()) for one in given if one.is_dir()]
    return {"folders": folders, "classes": classes, "processor": repr(processor)}


def unread(data: Data | DenseData) -> list[str]:
    """That images were left out, and a sentence for each of the first ones."""
    count, shown = len(data.left_out), list(data.left_out)[:SHOWN]
    first = (
        [f"{count} of {len(data)} images of {data.name} were left out, because they cannot be read:"] if count else []
    )
    return first + shown + ([f"and {count - SHOWN} more"] if count > SHOWN else [])


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
    settings |= {"reduced_labels": setup.reduced_labels} if images.name == "ade20k" else {}
    remarks: list[str] = []

    def measure(progress: Progress) -> list[Row]:
        hidden = unsaid(setup, getattr(predictor, "processor", None), dict(images.classes))
        ledger = setup.sharing.ledger(predictor.module, arms, settings | hidden)
        shared: dict[str, Any] = {"team": setup.sharing.team, "ledger": ledger, "progress": progress}
        rows = measure_dense(predictor, arms, images, batch_size, align=align, rounds=rounds, **shared)
        settings.update(images=len(images) - len(images.left_out), left_out=[*images.left_out])
        remarks.extend(unread(images))
        return rows

    return Evaluation(MEANINGS[task], settings, measure, remarks)
