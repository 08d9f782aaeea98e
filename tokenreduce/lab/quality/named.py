"""Data sets of dense tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.data import ade20k, cityscapes, coco, nyuv2
from tokenreduce.lab.data.samples import TASKS, DenseData
from tokenreduce.lab.quality.dense_metrics import DenseMetric, DepthMetric, SegmentationMetric
from tokenreduce.lab.quality.detection import DetectionMetric
from tokenreduce.lab.quality.embedded import load_scenes

# Data in official folders, by task and name: what reads them, and the layout that it expects.
FOLDERS: dict[str, dict[str, tuple[Callable[[Path], DenseData], str]]] = {
    "segmentation": {"ade20k": (ade20k.load, ade20k.LAYOUT), "cityscapes": (cityscapes.load, cityscapes.LAYOUT)},
    "detection": {"coco": (coco.load, coco.LAYOUT)},
    "depth": {"nyuv2": (nyuv2.load, nyuv2.LAYOUT)},
}
# Data that ship with the library, by task and name.
EMBEDDED: dict[str, dict[str, Callable[[Path | None], DenseData]]] = {
    "segmentation": {"scenes": partial(load_scenes, "segmentation")},
    "detection": {"scenes": partial(load_scenes, "detection")},
    "depth": {},
}


def load_dense(
    name: str, task: str, data_dir: Path | None = None, limit: int | None = None, reduced: bool = False
) -> DenseData:
    """The data called `name` for `task`, `limit` images spread evenly or all of them; `reduced` as in `ade20k.load`.

    Raises: ValueError if there are none, they are for another task, or `data_dir` does not hold them.
    """
    if task not in TASKS:
        raise unknown("dense task", task, TASKS)
    if reduced and name != "ade20k":
        raise InvalidValueError(f"--reduced-labels is for ade20k, not for {name}; leave it out")
    if name in EMBEDDED[task]:
        return EMBEDDED[task][name](data_dir).thinned(limit)
    if name not in FOLDERS[task]:
        raise unknown(f"data for {task}", name, [*EMBEDDED[task], *FOLDERS[task]])
    load, layout = FOLDERS[task][name]
    if data_dir is None:
        raise InvalidValueError(f"{name} does not ship with the library; give --data-dir, a folder that holds {layout}")
    found = ade20k.load(data_dir, reduced) if name == "ade20k" else load(data_dir)
    return found.thinned(limit)


def make_metric(data: DenseData, align: str = "none") -> DenseMetric:
    """The metric of the data's task; `align` as in `DepthMetric`."""
    if data.task == "segmentation":
        return SegmentationMetric(len(data.classes))
    if data.task == "detection":
        return DetectionMetric(list(data.classes))
    return DepthMetric(align, data.farthest)
