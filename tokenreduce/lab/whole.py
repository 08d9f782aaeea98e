"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Write the file, on the disk when this returns: an older one survives a full disk or a kill. Folders that are
    missing are made."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):  # links, pipes and devices
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")  # several machines may write the same file
    try:
        with part.open("wb") as file:
            file.write(data)
            flush(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what writers that were killed left of files with this name."""
    for litter in folder.glob(f".{name}.*.writing"):
        litter.unlink(missing_ok=True)
