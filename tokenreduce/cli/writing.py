"""Files that commands write: checked before any work, and kept elsewhere where writing fails after it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from tokenreduce.cli.output import console
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.environment import environment
from tokenreduce.lab.rows import Row
from tokenreduce.lab.whole import write_whole


def check_file(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """The path that an option gave, if a file can be written there; for typer, which calls it before the command."""
    if path is None:
        return None
    reason = "it is a folder; name a file in it" if path.is_dir() else why_not(path.parent)
    if not reason and (path.is_file() or not os.path.lexists(path)) and path.parent.is_dir():
        reason = try_opening(path)
    return checked(param, path, reason)


def check_folder(param: typer.CallbackParam, path: Path) -> Path:
    """The same for a folder."""
    return checked(param, path, why_not(path))


def checked(param: typer.CallbackParam, path: Path, reason: str) -> Path:
    if reason:
        raise InvalidValueError(f"{param.opts[0]} {path} cannot be written: {reason}")
    return path


def why_not(folder: Path) -> str:
    """Why nothing can be written in `folder`, which is made later where there is none; empty if it can."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"{there} is no folder; choose another place"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"there is no permission to write in {there}"


def try_opening(path: Path) -> str:
    """Why the file cannot be opened for writing; what it holds stays."""
    new = not path.exists()
    try:
        path.open("ab").close()
        if new:
            path.unlink(missing_ok=True)  # another process may look at the same time
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def saying(option: str, path: Path) -> Iterator[None]:
    """Where writing fails inside of it, the error is a sentence."""
    try:
        yield
    except OSError as error:
        raise InvalidValueError(f"{option} {path} could not be written ({error})") from None


def write_json(path: Path, command: str, rows: Sequence[Row], **settings: Any) -> None:
    """Write `rows`, the settings that led to them and the environment; see `write_data`."""
    write_data(path, {"command": command, "settings": settings, "environment": environment(), "rows": list(rows)})


def write_data(path: Path, data: Any) -> None:
    """Write `data` as JSON, to a file in the folder for temporary files, or else to the output, where `path` fails.

    Raises: ValueError that says so, after the results are kept.
    """
    text = json.dumps(data, indent=2, default=str) + "\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise InvalidValueError(f"--json {path} could not be written ({error}); {keep(text)}") from None
    console.print(f"wrote {path}", highlight=False)


def keep(text: str) -> str:
    """Save results somewhere else; in words where they are."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="tokenreduce_", suffix=".json", delete=False) as file:
            file.write(text)
    except OSError:
        console.print(text, highlight=False, soft_wrap=True)
        return "the results are printed above"
    return f"the results are kept in {file.name}"
