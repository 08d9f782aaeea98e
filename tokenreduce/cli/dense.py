"""`tokenreduce eval --task segmentation|detection|depth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tokenreduce.cli.arguments import place_name, progress_bar
from tokenreduce.cli.output import console, print_refused, print_table, write_json
from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.samples import TASKS
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor

# The data and the model where the user names none.
DATA = {"segmentation": "scenes", "detection": "scenes", "depth": "nyuv2"}
MODELS = {"segmentation": "scene_segmenter", "detection": "scene_detector"}
MEANINGS = {
    "segmentation": "change: of mIoU",
    "detection": "change: of AP50",
    "depth": "change: of delta-1; figures are means of the images'",
}


def evaluate_dense(
    task: str,
    model: str | None,
    data: str | None,
    arms: Sequence[Arm],
    device: torch.device,
    *,
    data_dir: Path | None,
    batch_size: int,
    limit: int | None,
    pretrained: bool,
    align: str,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Measure the arms, print the table and write the rows."""
    if task not in TASKS:
        raise unknown("task", task, ("classification", *TASKS))
    if task != "depth":
        refuse_options(task, {f"--align {align}": align != "none"})
    if task == "detection" and find_spec("pycocotools") is None:
        raise InvalidValueError(
            "average precision needs pycocotools, which the extra 'bench' brings: pip install 'tokenreduce[bench]'"
        )
    if model is None and task not in MODELS:
        raise InvalidValueError(f"no model for {task} ships with the library; give --model hf:NAME")
    model, data = model or MODELS[task], data or DATA[task]
    images = load_dense(data, task, data_dir, limit)
    predictor = load_predictor(model, task, pretrained)
    predictor.module.to(device)
    with progress_bar() as progress:
        rows = measure_dense(predictor, arms, images, batch_size, align=align, rounds=rounds, progress=progress)
    print_table(rows, f"{model}, {len(images)} images of {images.name}")
    console.print(MEANINGS[task], highlight=False)
    print_refused([row for row in rows if "refused" in row])
    if json_file is not None:
        settings: dict[str, Any] = {"task": task, "model": model, "pretrained": pretrained, "data": images.name}
        settings |= {"images": len(images), "device": place_name(device), "batch_size": batch_size}
        settings |= {"align": align} if task == "depth" else {}
        write_json(json_file, "eval", rows, **settings, rounds=rounds)


def refuse_options(task: str, given: Mapping[str, object]) -> None:
    """Raise if one of the options that mean nothing to the task was given."""
    named = [name for name, value in given.items() if value]
    if named:
        raise InvalidTypeError(f"{' and '.join(named)} mean nothing to --task {task}; leave them out")
