"""`Shards`: numbered batches of an evaluation, shared among processes, and kept in a file once they are finished.

A shard is a batch, the same images whatever the number of processes: each model sees what it would see in one process.
Results come back in the order of the images and are computed from once, so that figures are the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenreduce.lab.journal import Journal
from tokenreduce.lab.team import ALONE, Team

Found = dict[str, Any]  # what came of a shard, as JSON


class Ledger:
    """Finished shards in a file of JSON lines. Every process but the first writes one of its own, `FILE.<rank>`, and
    the first reads all of them, however many processes wrote them: they lie in a folder that all processes see.

    Args:
        key: says everything that results depend on; shards of another are left alone.
    """

    def __init__(self, path: Path, team: Team, key: str) -> None:
        self.key = key
        self.known: list[Journal] = []
        team.once(lambda: self.known.extend(map(Journal, files_of(path))))  # before anyone writes
        self.own = Journal(own_file(path, team))

    def get(self, number: int) -> Found | None:
        """What came of the shard, if some process has finished it."""
        found = (journal.get(f"{self.key} {number}") for journal in self.known)
        return next((one for one in found if one is not None), None)

    def add(self, number: int, found: Found) -> None:
        """Keep a shard."""
        self.own.add(f"{self.key} {number}", found, {"shard": number})


def own_file(path: Path, team: Team) -> Path:
    """The file that this process writes."""
    return path if team.leads else path.with_name(f"{path.name}.{team.rank}")


def files_of(path: Path) -> list[Path]:
    """The files that the processes of earlier runs wrote."""
    return [one for one in (path, *sorted(path.parent.glob(f"{path.name}.*"))) if one.is_file()]


@dataclass
class Shards:
    """Args:
    count: how many batches there are.
    read: gives for each of some numbers its batch, None if nothing in it can be read, and why images cannot.
    left_out: filled with these reasons, in the process that leads.
    """

    count: int
    read: Callable[[Sequence[int]], Iterable[tuple[Any, list[str]]]]
    team: Team = ALONE
    ledger: Ledger | None = None
    left_out: dict[str, None] = field(default_factory=dict)

    def work(self, take: Callable[[Any, Found], object]) -> list[Found]:
        """What came of all batches in order, in the process that leads: `take` runs on each batch that this process is
        to do, and writes into what came of it."""
        done: dict[int, Found] = {}
        if self.ledger is not None:
            kept = {number: self.ledger.get(number) for number in range(self.count)}
            done = {number: one for number, one in kept.items() if one is not None}
        there = self.team.once(lambda: set(done))
        mine = self.team.mine([number for number in range(self.count) if number not in there])
        for number, (batch, reasons) in zip(mine, self.read(mine), strict=True):
            done[number] = {"left_out": reasons}
            if batch is not None:
                take(batch, done[number])
            if self.ledger is not None:
                self.ledger.add(number, done[number])
        whole: dict[int, Found] = {}
        for part in self.team.gather(done):
            whole |= part
        found = [whole[number] for number in range(self.count)] if self.team.leads else []
        self.left_out |= {reason: None for one in found for reason in one["left_out"]}
        return found
