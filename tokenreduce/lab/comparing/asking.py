"""From what people ask for to arms: which methods at which budgets, and why some cannot run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm, recorded_arm
from tokenreduce.lab.rows import Row
from tokenreduce.patching.compatibility import Compatibility, compatible
from tokenreduce.reducers.registry import create, methods


def check_asked(
    named: Sequence[str] | None, budgets: Sequence[float], options: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise for names, options and budgets that are wrong for every model, before one is built."""
    if isinstance(named, str) or (named is not None and not named):
        raise InvalidTypeError(f"methods is {named!r}; give a list such as ['ward', 'tome'], or None for all")
    for name in {*(named or ()), *options}:
        create(name, dict(options.get(name, {})))
    if not budgets:
        raise InvalidTypeError("budgets is empty; give shares of the multiply-adds, such as 0.8, 0.6")
    for share in budgets:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InvalidValueError(f"a budget is {share!r}; it is a share of the multiply-adds in (0, 1], such as 0.6")
    if len(set(budgets)) < len(budgets) or (named and len(set(named)) < len(named)):
        raise InvalidValueError(f"methods {named} or budgets {list(budgets)} hold one twice; name each once")


def arms_of(
    model: nn.Module,
    named: Sequence[str] | None,
    budgets: Sequence[float],
    options: Mapping[str, Mapping[str, Any]],
    schedules: Sequence[str | Path],
) -> tuple[list[Arm], list[Row]]:
    """The arms of calibrated files, then of every method that fits, and a row with the reason for each of the others.

    Raises: ValueError if none fits, or a file is no schedule.
    """
    fitting = compatible(model)
    asked = methods("encoder") if named is None else list(named)
    refused: list[Row] = [
        {"method": name, "budget": "any budget", "refused": fitting.refused[name]}
        for name in asked
        if name in fitting.refused
    ]
    files = [recorded_arm(path) for path in schedules]
    if len(refused) == len(asked) and not files:
        chosen = Compatibility([], {row["method"]: row["refused"] for row in refused})
        raise InvalidValueError(f"no method fits this model: {chosen.reasons}{others(fitting)}")
    fit = [name for name in asked if name not in fitting.refused]
    return files + [Arm(name, flops=share, **options.get(name, {})) for name in fit for share in budgets], refused


def chosen_by(schedules: Sequence[str | Path], marks: Sequence[str]) -> list[str]:
    """A sentence for each file of `calibrate` that was chosen on some of the images with these marks."""
    said = []
    for path in schedules:
        theirs = set(json.loads(Path(path).read_text()).get("calibration", {}).get("image_marks", []))
        count = sum(mark in theirs for mark in marks)
        if count:
            said.append(
                f"{count} of the {len(marks)} images are among those that {path} was chosen on, so its row may look "
                "better than it would on new images: calibrate on one folder and compare on another"
            )
    return said


def others(fitting: Sequence[str]) -> str:
    """Which methods would fit instead."""
    return f"; those that do: {', '.join(fitting)}" if fitting else ""
