"""Tables for people, JSON for machines. A row is a dict with the documented keys; shares and accuracies are
fractions of 1."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
# Where there is no terminal, as in a log, lines may be long.
console = Console(width=None if sys.stdout.isatty() else 140)

# key -> (heading, how a value is shown)
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "method": ("method", str),
    "budget": ("budget", str),
    "batch_size": ("batch", str),
    "macs": ("MACs", lambda v: f"{v / 1e9:.2f} G" if v >= 1e9 else f"{v / 1e6:.1f} M"),
    "flops_share": ("share", lambda v: f"{v:.3f}"),
    "tokens_left": ("tokens left", lambda v: f"{v:.0f}"),
    "top1": ("top-1", lambda v: f"{v:.2%}"),
    "top5": ("top-5", lambda v: f"{v:.2%}"),
    "top1_change": ("change, points", lambda v: f"{100 * v:+.2f}"),
    "miou": ("mIoU", lambda v: f"{v:.2%}"),
    "pixel_accuracy": ("pixel accuracy", lambda v: f"{v:.2%}"),
    "ap": ("AP", lambda v: f"{v:.2%}"),
    "ap50": ("AP50", lambda v: f"{v:.2%}"),
    "delta1": ("delta-1", lambda v: f"{v:.2%}"),
    "abs_rel": ("AbsRel", lambda v: f"{v:.4f}"),
    "rmse": ("RMSE, m", lambda v: f"{v:.3f}"),
    "change": ("change, points", lambda v: f"{100 * v:+.2f}"),
    "change_interval": ("95 % interval", lambda v: f"{100 * v[0]:+.2f} to {100 * v[1]:+.2f}"),
    "class_error": ("class error", lambda v: f"{v:.4f}"),
    "token_error": ("token error", lambda v: f"{v:.4f}"),
    "median_ms": ("median ms", lambda v: f"{v:.1f}"),
    "p90_ms": ("p90 ms", lambda v: f"{v:.1f}"),
    "images_per_second": ("images/s", lambda v: f"{v:.1f}"),
    "speedup": ("speed-up", lambda v: f"{v:.2f} x"),
    "speedup_interval": ("95 % interval", lambda v: f"{v[0]:.2f} - {v[1]:.2f}"),
    "limit_share": ("time / limit", lambda v: f"{v:.3f}"),
    "peak_memory_mib": ("peak MiB", lambda v: f"{v:.1f}"),
    "plan_us": ("plan us", lambda v: f"{v:.0f}"),
    "apply_us": ("apply us", lambda v: f"{v:.0f}"),
    "attention": ("attention", str),
}


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print the rows with every documented column that some row has."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    for key in keys:
        words = key in ("method", "budget", "attention")
        heading, show = COLUMNS[key]
        cells = [show(row[key]) for row in rows if row.get(key) is not None]
        width = max(map(len, cells + heading.split()))  # headings wrap between words, nothing is cut
        table.add_column(heading, justify="left" if words else "right", min_width=width)
    for row in rows:
        table.add_row(*[COLUMNS[key][1](row[key]) if row.get(key) is not None else "-" for key in keys])
    console.print(table)


def print_refused(rows: Sequence[Row]) -> None:
    """A line for each arm that the model cannot reach."""
    for row in rows:
        what = f"{row['method']} at {row['budget']} was not run: {row['refused']}"
        console.print(what, style="yellow", highlight=False, markup=False)


def environment() -> dict[str, Any]:
    """Versions, device and threads, for every JSON file."""
    from tokenreduce import __version__

    libraries = ("torch", "timm", "torchvision", "transformers")
    versions: dict[str, Any] = {name: sys.modules[name].__version__ for name in libraries if name in sys.modules}
    return {
        "tokenreduce": __version__,
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def write_json(path: Path, command: str, rows: Sequence[Row], **settings: Any) -> None:
    """Write `rows`, the settings that led to them and the environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"command": command, "settings": settings, "environment": environment(), "rows": list(rows)}
    path.write_text(json.dumps(data, indent=2, default=str) + "\n")
    console.print(f"wrote {path}", highlight=False)
