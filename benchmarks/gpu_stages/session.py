"""`Session`: the rows of a run on a GPU, written when they are measured, and the time that is left."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Facts = dict[str, Any]
END = "\n]}\n"


class GpuLostError(Exception):
    """The GPU answers no more in this process; another process goes on."""


@dataclass
class Session:
    """One run. `tiny` means a CPU and the smallest sizes, to see that every stage runs.

    A row is what was asked (`key`) and what was found. Rows that are in the file already are not measured again, so
    that a process that goes on after a crash leaves out what is done and what crashed.
    """

    file: Path
    tiny: bool
    ends: float  # by time.time()
    facts: Facts = field(default_factory=dict)
    rows: list[Facts] = field(default_factory=list)
    stage: str = ""
    stage_ends: float = 0.0
    left_out: tuple[str, ...] = ()  # choices of kernels that are not measured

    def __post_init__(self) -> None:
        if self.file.exists():
            content = json.loads(self.file.read_text())
            self.rows = content.pop("rows")
            self.facts = content
        self.write()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tiny else torch.float16

    def begin(self, stage: str, seconds: float) -> None:
        """Start a stage that may take so many seconds."""
        self.stage, self.stage_ends = stage, min(self.ends, time.time() + seconds)

    def late(self) -> bool:
        """Whether the stage's time, or the run's, is over."""
        return time.time() > self.stage_ends

    def measure(self, call: Callable[[], Facts], **key: Any) -> None:
        """Add a row with what `call` gives, or why it failed; nothing if the row is there or the time is over."""
        asked = {"stage": self.stage, **key}
        if any(asked.items() <= row.items() for row in self.rows if row["stage"] == self.stage):
            return
        if self.late():
            if not any(row.get("cut") and row["stage"] == self.stage for row in self.rows):
                self.add({"stage": self.stage, "cut": True, "before": str(key)})
            return
        start = time.time()
        try:
            found = call()
        except Exception as error:  # a run is short and dear: the next measurement must still be made
            found = {"failed": f"{type(error).__name__}: {error}"[:600]}
            traceback.print_exc(limit=-4)
        self.add(asked | found | {"took_s": time.time() - start})
        if not self.tiny and any("failed" in name for name in found):
            check_gpu()

    def add(self, row: Facts) -> None:
        """Write a row to the end of the file and print it."""
        self.rows.append(rounded(row))
        with self.file.open("r+") as file:
            file.seek(self.file.stat().st_size - len(END))
            file.write(",\n" * (len(self.rows) > 1) + json.dumps(self.rows[-1]) + END)
        shown = {key: value for key, value in self.rows[-1].items() if not isinstance(value, list)}
        print(json.dumps(shown), flush=True)

    def write(self) -> None:
        """Write the file anew, as whole JSON with one row a line."""
        head = json.dumps(self.facts | {"rows": []}).removesuffix("]}")
        self.file.write_text(head + "\n" + ",\n".join(map(json.dumps, self.rows)) + END)


def check_gpu() -> None:
    """Raises: GpuLostError if an error has ended what this process can do with the GPU."""
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()
    except Exception as error:
        raise GpuLostError(str(error)[:200]) from None


def rounded(value: Any) -> Any:
    """Floats to five digits, inside of lists and dicts too."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value
