"""The rows of every task on tiny models, by one process or by those that torchrun starts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import timm  # noqa: F401  adapters load only when their library is there
import torch
from dense_data import ALIGN, MAKERS, samples

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing import compare_methods
from tokenreduce.lab.data.decoding import UnreadableError
from tokenreduce.lab.data.samples import DenseData, Sample
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.evaluation import classification
from tokenreduce.lab.quality.loading import Head, Setup
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.quality.sharing import Sharing
from tokenreduce.lab.team import Team, join_team

BATCH = 2  # of 7 images: four batches, the last one smaller


class Damaged:
    """Samples of which the first two and the fifth cannot be read: the first batch is empty."""

    def __init__(self, data: DenseData) -> None:
        self.samples = data.samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if index in (0, 1, 4):
            raise UnreadableError(f"picture {index} is damaged")
        return self.samples[index]


def all_rows(folder: Path, out: Path, team: Team) -> dict[str, Any]:
    """By task, as JSON; `folder` holds the models, `out` the rows of a comparison."""
    found: dict[str, Any] = {}
    for task in MAKERS:
        data = samples(task, 7)
        data = dataclasses.replace(data, samples=Damaged(data), left_out={})
        arms = [Arm("tome", flops=0.95), Arm("ats")]
        predictor = load_predictor(f"hf:{folder / task}", task)
        rows = measure_dense(predictor, arms, data, BATCH, align=ALIGN[task], rounds=20, team=team)
        found[task] = [rows, list(data.left_out)]
    setup = Setup(limit=7, batch_size=BATCH, sharing=Sharing(team))
    for kind in ("trained", "none"):
        ready = classification([Arm("tome", flops=0.6), Arm("ats")], setup, Head(kind))
        found[kind] = [ready.measure(lambda done, what: None), ready.settings]
    compared = compare_methods(["tome", "random"], (0.8, 0.6), out=out, setup=setup, speed=None)
    found["compared"] = [compared.rows, compared.settings]
    return json.loads(json.dumps(found, default=str))


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with join_team() as team:
        rows = all_rows(folder, out.with_suffix(".compared"), team)
    if team.leads:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
