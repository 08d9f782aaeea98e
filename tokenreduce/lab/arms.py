"""`Arm`: a way to reduce a model, as a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.patching.recorded import read_patch

BUDGETS = ("ratio", "r", "flops", "schedule", "keep")


class Arm:
    """A way to reduce the model: a method and the arguments of `tokenreduce.patch`, as in `Arm("tome", flops=0.6)`."""

    def __init__(self, method: str, **arguments: Any) -> None:
        self.method, self.arguments = method, arguments

    @property
    def budget(self) -> str:
        """The budget as the user would type it, such as "flops=0.6"; "none" if there is none."""
        return next((f"{name}={self.arguments[name]}" for name in BUDGETS if name in self.arguments), "none")

    @property
    def options(self) -> dict[str, Any]:
        """The arguments besides the budget."""
        return {name: value for name, value in self.arguments.items() if name not in BUDGETS}

    @property
    def name(self) -> str:
        """The method, with its budget if it has one."""
        return self.method if self.budget == "none" else str(self)

    @property
    def content(self) -> str:
        """What the file of its schedule holds, on which its rows depend; empty where there is no file."""
        file = self.arguments.get("schedule")
        return Path(file).read_text() if isinstance(file, str) else ""

    def __repr__(self) -> str:
        return f"{self.method} at {self.budget}"


def recorded_arm(path: str | Path, language: bool = False) -> Arm:
    """What a file of `calibrate` or `save_patch` says.

    Args:
        language: whether it must be of what enters a language model, or must not be.

    Raises: ValueError if the file is no such record, or one for the other kind of model.
    """
    read = read_patch(path)
    if (read.keep is not None) != language:
        theirs = "the layers of a vision model" if language else "what enters a language model"
        raise InvalidValueError(f"{path} is a schedule for {theirs}, and cannot be used here; give another file")
    return Arm(read.method, schedule=str(path))
