"""Work in child processes that are forked from one that has imported the libraries, which takes ten seconds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")
MEMORY = 8 << 30
LIBRARIES = ("pytest", "hypothesis", "torch", "torchvision", "timm", "transformers", "open_clip", "peft", "numba")
LIBRARIES += ("sklearn.cluster", "scipy.cluster", "onnx", "onnxscript", "onnxruntime", "matplotlib.pyplot", "typer")
LIBRARIES += ("rich", "torchmetrics", "pycocotools.coco", "h5py", "fvcore.nn", "safetensors", "PIL.Image")


@dataclass(frozen=True)
class Job:
    """`work(say)` in a child: what it hands to `say` is the result; after `seconds` it is killed."""

    key: Any
    work: Callable[[Callable[[Any], None]], None]
    seconds: float


@dataclass
class Child:
    job: Job
    log: Path
    reader: Connection = field(init=False)
    ends: float = field(init=False)

    def __post_init__(self) -> None:
        self.reader, writer = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=_live, args=(self.job, writer, self.log))
        self.process.start()
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.process.pid, 0)  # the child does so too: whoever is first
        writer.close()
        self.ends = time.monotonic() + self.job.seconds

    def result(self) -> Any:
        """What the child said, or `{"outcome": ...}`; ends it and all processes that it started."""
        late = {"outcome": "timeout"} if time.monotonic() > self.ends else {"outcome": "crash"}
        try:
            said = self.reader.recv() if self.reader.poll() else late
        except EOFError:
            said = late
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.reader.close()
        return said


def _live(job: Job, writer: Connection, log: Path) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    job.work(writer.send)
    os._exit(0)


def run(jobs: deque[Job], workers: int, folder: Path) -> Iterator[tuple[Any, Any]]:
    """The key and the result of each job as it ends; the caller may append jobs in between."""
    folder.mkdir(parents=True, exist_ok=True)
    free = list(range(workers))
    children: dict[int, Child] = {}
    while jobs or children:
        while jobs and free:
            place = free.pop()
            children[place] = Child(jobs.popleft(), folder / f"{place}.log")
        soonest = min(child.ends for child in children.values())
        wait([child.reader for child in children.values()], timeout=max(0.0, soonest - time.monotonic()) + 0.1)
        for place, child in list(children.items()):
            if child.reader.poll() or time.monotonic() > child.ends:
                del children[place]
                free.append(place)
                yield child.job.key, child.result()


def preload(names: Iterable[str] = LIBRARIES) -> None:
    """Import what the children need, and nothing of the project."""
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
