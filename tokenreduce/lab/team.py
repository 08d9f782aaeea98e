"""`Team`: the processes that work on one evaluation, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

Made = TypeVar("Made")
# A process that died is noticed at once, as its connection ends: this is for one that is only slower than the others.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Team:
    """Process `rank` of `size`. Only numbers on the CPU travel between them, by gloo also where models are on GPUs."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def mine(self, items: list[Made]) -> list[Made]:
        """Every `size`-th of the items: none is left out or there twice, also where the number does not divide."""
        return items[self.rank :: self.size]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, in the process that leads; elsewhere none."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, found, dst=0, group=self.group)
        return found or []

    def once(self, make: Callable[[], Made]) -> Made:
        """What `make` gives in the process that leads, in all of them; so do they raise what it raises."""
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        if self.leads:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, group=self.group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def place(self, device: torch.device) -> torch.device:
        """The device of this process: "cuda" without a number is the card of its own on the machine."""
        if device.type != "cuda" or device.index is not None or self.size == 1:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % max(torch.cuda.device_count(), 1))


ALONE = Team()


@contextmanager
def join_team() -> Iterator[Team]:
    """The team that torchrun started this process in, or the process alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
