"""The scripts of benchmarks/ as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).parents[1] / "benchmarks")


def script(name: str) -> Any:
    """This script, which may import those beside it."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return importlib.import_module(name)
