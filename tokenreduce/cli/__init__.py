"""The command line. `main` works on a bare install and says what is missing."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Entry point of the console script `tokenreduce`."""
    missing = [
        name
        for name in ("typer", "rich", "timm", "torchvision", "numpy", "safetensors", "matplotlib", "torchmetrics")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        sys.exit(
            f"tokenreduce: the command line needs {', '.join(missing)}, which the extra 'bench' brings: "
            "pip install 'tokenreduce[bench]'"
        )
    from tokenreduce.cli.app import run

    run()
