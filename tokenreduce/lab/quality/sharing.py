"""Evaluations as shards: the batches of data by number, and the file that finished ones are kept in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.class_folders import Tolerant, of_one_size, sort_out
from tokenreduce.lab.data.folders import Data
from tokenreduce.lab.data.samples import DenseData, Sample
from tokenreduce.lab.environment import installed
from tokenreduce.lab.journal import digest, digest_of_method, digest_of_model
from tokenreduce.lab.shards import Ledger, Shards
from tokenreduce.lab.team import ALONE, Team


@dataclass(frozen=True)
class Sharing:
    """Who works on an evaluation, and where finished shards are kept, if anywhere."""

    team: Team = ALONE
    resume: Path | None = None

    def ledger(self, model: nn.Module, arms: Sequence[Arm], settings: dict[str, Any]) -> Ledger | None:
        """The file, for an evaluation with these settings. Images are not read for this: they count as the same if all
        settings are, the name and the number of the data among them."""
        if self.resume is None:
            return None
        told = {name: str(value) for name, value in settings.items()}
        key = digest(digest_of_model(model), list(map(facts_of_arm, arms)), told, installed(), place_of(model))
        return Ledger(self.resume, self.team, key)


UNSHARED = Sharing()


def facts_of_arm(arm: Arm) -> list[str]:
    """What an arm is: also the text of a file that holds its schedule, and the code of its method."""
    return [arm.method, repr(sorted(arm.arguments.items())), arm.content, digest_of_method(arm.method)]


def place_of(model: nn.Module) -> str:
    """The kind of device that a model is on: cards of one kind give the same figures."""
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def numbers(batch: int, batch_size: int, count: int) -> range:
    """The numbers of the images in a batch; the last batch may be smaller."""
    return range(batch * batch_size, min((batch + 1) * batch_size, count))


def image_shards(data: Data, batch_size: int, workers: int, team: Team, ledger: Ledger | None) -> Shards:
    """Images and labels of class folders and the like."""
    count = len(data)
    workers = 0 if data.in_memory else workers  # processes pay for decoding files only

    def read(batches: Sequence[int]) -> Any:
        chosen = [list(numbers(batch, batch_size, count)) for batch in batches]
        loader = DataLoader(Tolerant(data.images), batch_sampler=chosen, num_workers=workers, collate_fn=sort_out)
        return map(of_one_size, loader)

    return Shards(-(-count // batch_size), read, team, ledger, data.left_out)


def dense_shards(data: DenseData, batch_size: int, team: Team, ledger: Ledger | None) -> Shards:
    """Samples of a dense task."""
    count = len(data)

    def read(batches: Sequence[int]) -> Iterator[tuple[list[Sample] | None, list[str]]]:
        for batch in batches:
            own = replace(data, left_out={})
            yield own.read(numbers(batch, batch_size, count)) or None, list(own.left_out)

    return Shards(-(-count // batch_size), read, team, ledger, data.left_out)
