"""The scripts of benchmarks/ and examples/ as modules."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER, EXAMPLES = str(ROOT / "benchmarks"), str(ROOT / "examples")


def script(name: str) -> Any:
    """This script, which may import those beside it."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return importlib.import_module(name)


def example(name: str) -> Any:
    """This example, which may import those beside it. Their folder is searched last: one may have a library's name."""
    if EXAMPLES not in sys.path:
        sys.path.append(EXAMPLES)
    spec = spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None, name
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and web frameworks look their module up
    spec.loader.exec_module(module)
    return module
