"""`--schedule`: files of `calibrate` beside, or instead of, methods and budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.lab.arms import Arm, recorded_arm

Schedules = Annotated[
    list[Path] | None,
    typer.Option(
        "--schedule", help="a file of calibrate, which names its method, instead of --method and a budget; repeatable"
    ),
]


def with_files(
    files: Sequence[Path] | None, given: Sequence[object], make: Callable[[], list[Arm]], language: bool = False
) -> list[Arm]:
    """The arms of the files, and then those that `make` gives of `given`, if anything is given or there are no files.

    Args:
        language: as of `recorded_arm`.
    """
    found = [recorded_arm(file, language) for file in files or ()]
    return found + make() if not found or any(given) else found
