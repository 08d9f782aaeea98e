"""What lets a benchmark go on where it stopped: figures of single images on disk, one file an arm, and stamps that say
with which code a row was measured."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import origins
import torch

ROOT = Path(__file__).parent.parent
# What decides a figure of quality: methods, models and images, but not the command line.
DECIDING = ("ops", "maps", "reducers", "budget", "forward", "patching", "lab/data", "lab/shipped", "lab/quality")
Found = dict[str, Any]  # the `row` of an arm, and each of its figures of every image, `(images,)`


def save(found: Found, file: Path) -> None:
    """Write what was found at once: a killed run leaves no half file that would count as done."""
    partial = file.with_suffix(f".{os.getpid()}.npz")
    figures = {name: values.float().numpy() for name, values in found.items() if name != "row"}
    np.savez_compressed(partial, **figures, row=json.dumps(found["row"]))
    partial.replace(file)


def read(file: Path) -> Found:
    saved = dict(np.load(file))
    row = json.loads(str(saved.pop("row")))
    return {"row": row, **{name: torch.from_numpy(values).double() for name, values in saved.items()}}


def fingerprint(settings: dict[str, Any]) -> str:
    """Of the settings and of the code that decides figures: what other code has measured does not count as done."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for folder in (*(ROOT / "tokenreduce" / room for room in DECIDING), ROOT / "patches", ROOT / "csrc"):
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def stamp(settings: dict[str, Any]) -> str:
    """What a row says in `measured`: the commit, with a plus where files differ from it, and the fingerprint."""
    return f"{here()}/{fingerprint(settings)}"


def here() -> str:
    """The commit, with a plus where files of the library differ from it."""
    try:
        changed = origins.git("status", "--porcelain", "--", "tokenreduce", "patches", "csrc").strip()
        return origins.git("rev-parse", "--short=7", "HEAD").strip() + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # a copy without its history


def same_code(one: str, other: str) -> bool:
    """Whether two stamps are of the same code and settings: then what was measured counts as done."""
    return one.partition("/")[2] == other.partition("/")[2]
