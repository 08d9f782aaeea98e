"""Finished rows in a file, so that a comparison that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.journal import Journal, digest, digest_of_method
from tokenreduce.lab.rows import Row

SETTINGS, UNPATCHED = "settings", "unpatched"


class RowBook:
    """Rows of one comparison. Others may be added to it later, with other methods and budgets; all else stays.

    Raises: ValueError if the file holds rows of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._journal, self._settings = Journal(path), settings
        before = self._journal.get(SETTINGS)
        if before is None:
            self._journal.add(SETTINGS, settings, {})
        elif other := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
            was = ", ".join(f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in other)
            raise InvalidValueError(
                f"{path} holds rows of other settings ({was}); give these, name another folder, or remove that file"
            )

    def get(self, arm: Arm | None) -> Row | None:
        """The row of this arm, or of the unpatched model, if it is finished."""
        found: Row | None = self._journal.get(self._key(arm))
        return found

    def add(self, arm: Arm | None, row: Row) -> None:
        """Keep a finished row."""
        self._journal.add(self._key(arm), row, {})

    def adopt(self, path: Path, arms: Sequence[Arm | None]) -> None:
        """Keep the rows of these arms that another process wrote for the same comparison."""
        other = Journal(path)
        if other.get(SETTINGS) != self._settings:
            return
        for arm in arms:
            row = other.get(self._key(arm))
            if row is not None and self.get(arm) is None:
                self.add(arm, row)

    def _key(self, arm: Arm | None) -> str:
        if arm is None:
            return UNPATCHED
        return digest(arm.method, arm.arguments, arm.content, digest_of_method(arm.method))
