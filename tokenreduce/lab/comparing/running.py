"""`compare_methods`: from names to the rows of all methods at all budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing.asking import arms_of, check_asked, chosen_by
from tokenreduce.lab.comparing.measuring import Bench, Speed, make_bench, measure_row
from tokenreduce.lab.comparing.rowbook import RowBook
from tokenreduce.lab.environment import card_name, place_name
from tokenreduce.lab.journal import digest, digest_of_model
from tokenreduce.lab.quality.evaluation import unread
from tokenreduce.lab.quality.loading import DEFAULT, FITTING, Head, Setup, load
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shards import files_of, own_file
from tokenreduce.lab.team import Team

JOURNAL = "rows.jsonl"
SAMPLES = 3  # images whose tokens are drawn


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Args:
        rows: the unpatched model first, then calibrated schedules, then every method at every budget, and last those
            that the model cannot run, with the reason (`refused`).
        settings: what led to the rows.
        meaning: what the figures mean, in a sentence.
        remarks: what is to be known of the images, in sentences.
        network: the unpatched model.
        samples: some of the images, as the model takes them.
        arms: of the rows that were measured, in their order.
    """

    rows: list[Row]
    settings: dict[str, Any]
    meaning: str
    remarks: list[str]
    network: nn.Module
    samples: Tensor
    arms: list[Arm] = field(default_factory=list)


def compare_methods(
    named: Sequence[str] | None = None,
    budgets: Sequence[float] = (0.8, 0.6, 0.45),
    *,
    out: str | Path,
    setup: Setup = DEFAULT,
    head: Head = FITTING,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    schedules: Sequence[str | Path] = (),
    speed: Speed | None = Speed(),  # noqa: B008  frozen
    workers: int = 0,
    progress: Progress = lambda fraction, what: None,
) -> Comparison:
    """Measure methods at budgets on images: accuracy where there are labels, errors of features, compute and speed.

    Each row is kept in `out` as soon as it is measured, so that a run that was stopped goes on where it was, and more
    methods and budgets can be added later.

    Args:
        named: names of methods; None takes all that fit the model.
        budgets: shares of the unpatched multiply-adds.
        out: a folder.
        options: of methods, by name.
        schedules: files of `calibrate` or `save_patch`, a row each.
        speed: how speed is measured; None measures none.
        workers: processes that read image folders.

    Raises: ValueError, TypeError for what does not fit, or if `out` holds rows of other settings.
    """
    options = options or {}
    check_asked(named, budgets, options)
    if speed is not None:
        check_alone(setup.sharing.team, torch.device(setup.device))
    loaded = load(setup, head, workers=workers)
    arms, refused = arms_of(loaded.network, named, budgets, options, schedules)
    bench = make_bench(loaded, speed)
    settings = settings_of(bench, setup)
    unpatched, rows = rows_of(bench, arms, settings, Path(out) / JOURNAL, setup.sharing.team, progress)
    measured = [arm for arm in arms if "refused" not in rows[str(arm)]]
    ordered = [] if unpatched is None else [unpatched]
    ordered += [rows[str(arm)] for arm in measured]
    ordered += [row for row in rows.values() if "refused" in row] + refused
    images = loaded.images
    about = settings | {"budgets": list(budgets), "images": len(images) - len(images.left_out)}
    remarks = [*images.remarks, *unread(images), *chosen_by(schedules, bench.images.marks)]
    about |= {"left_out": [*images.left_out], "remarks": remarks}
    samples = next(iter(bench.images.batches))[0][:SAMPLES]
    return Comparison(ordered, about, bench.meaning, remarks, loaded.network, samples, measured)


def rows_of(
    bench: Bench, arms: Sequence[Arm], settings: dict[str, Any], path: Path, team: Team, progress: Progress
) -> tuple[Row | None, dict[str, Row]]:
    """The row of the unpatched model and those of the arms, by name, from the file at `path` or measured. A row is
    measured by one process of the team, which has a file of its own; all of them get all rows."""
    book = RowBook(own_file(path, team), settings)
    if team.leads:
        for other in files_of(path)[1:]:  # of processes of earlier runs, which may have been killed
            book.adopt(other, [None, *arms])
    todo = team.once(lambda: [number for number, arm in enumerate(arms) if book.get(arm) is None])
    mine = team.mine(todo)
    for done, number in enumerate(mine):
        measure(bench, arms[number], book, part_of(progress, done, len(mine)))
    for rank, rows in enumerate(team.gather([book.get(arm) for arm in (None, *(arms[n] for n in mine))])):
        theirs = (None, *(arms[number] for number in todo[rank :: team.size]))
        for arm, row in zip(theirs, rows, strict=True):
            if row is not None and book.get(arm) is None:
                book.add(arm, row)
    return team.once(lambda: (book.get(None), {str(arm): book.get(arm) or {} for arm in arms}))


def part_of(progress: Progress, done: int, count: int) -> Progress:
    """What tells of one of `count` rows, of which `done` are finished."""
    return lambda fraction, what: progress((done + fraction) / count, what)


def measure(bench: Bench, arm: Arm, book: RowBook, progress: Progress) -> None:
    """Measure a row that is not in the book, and put it there."""
    images = len(bench.images.marks)
    unpatched, row = measure_row(bench, arm, lambda done: progress(done / images, str(arm)))
    if unpatched and book.get(None) is None:
        book.add(None, unpatched)
    book.add(arm, row)


def check_alone(team: Team, device: torch.device) -> None:
    """Raise if processes of the team would be timed beside each other on one device."""
    if team.size == 1:
        return
    if device.type == "cpu":
        raise InvalidTypeError(
            "processes that share a CPU cannot be timed beside each other; give --no-speed (speed=None), or one process"
        )
    places = team.gather(card_name(device))

    def refuse_shared() -> None:
        if len(set(places)) < len(places):
            raise InvalidTypeError(
                f"{len(places)} processes have {len(set(places))} cards, and models on one card cannot be timed beside "
                "each other; give --no-speed (speed=None), or as many processes as cards and --device cuda"
            )

    team.once(refuse_shared)


def settings_of(bench: Bench, setup: Setup) -> dict[str, Any]:
    """What rows depend on besides methods and budgets."""
    speed = bench.speed
    timed = None if speed is None else {**vars(speed), "threads": torch.get_num_threads()}
    about = bench.loaded.settings | bench.told
    alone = setup.sharing.team.size == 1
    device = setup.device if alone else torch.device(setup.device).type  # each process has a card of its own
    about |= {"limit": setup.limit, "device": place_name(device), "speed": timed}
    versions = {"tokenreduce": version("tokenreduce"), "torch": torch.__version__}
    images = digest(list(bench.loaded.images.class_names), bench.images.labels, bench.images.marks)
    return about | {"versions": versions, "weights": digest_of_model(bench.loaded.network), "pixels": images}
