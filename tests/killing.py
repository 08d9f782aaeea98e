"""Runs a command of the command line again and again, killed by SIGKILL at random points, until it was killed so often.

    python tests/killing.py compare FOLDER KILLS

One process loads the libraries and forks for each run, so that a run starts at once. Whenever a run came to its end,
the next one starts in a new folder. Prints JSON: for each folder how often a run was killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import timm  # noqa: F401
import torch

from tokenreduce.cli.app import app
from tokenreduce.lab.comparing import running
from tokenreduce.lab.search.trials import Trials

COMPARE = ("--methods", "ward,tome,dtop", "--budgets", "0.9,0.6", "--limit", "8", "--rounds", "1")
COMPARE += ("--speed-batch-size", "1", "--workers", "0")
CALIBRATE = ("--images", "fashion", "--flops", "0.8", "--method", "tome", "--limit", "8", "--no-greedy")


def arguments(command: str, folder: Path) -> list[str]:
    rest = (*COMPARE, "--out", str(folder)) if command == "compare" else (*CALIBRATE, "--out", f"{folder}/s.json")
    return [command, "--model", "fashion_vit", *(str(IMAGES) if word == "fashion" else word for word in rest)]


IMAGES = Path(sys.argv[2]) / "images" if len(sys.argv) > 2 else Path()


def run(command: str, folder: Path) -> None:
    """One run, which notes in a file that a measurement starts."""
    started = folder / "started.txt"

    def noting(function: Any) -> Any:
        def noted(*given: Any, **named: Any) -> Any:
            with started.open("a") as file:
                file.write("x\n")
            return function(*given, **named)

        return noted

    folder.mkdir(parents=True, exist_ok=True)
    running.measure_row = noting(running.measure_row)
    Trials._measure = noting(Trials._measure)  # type: ignore[method-assign]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    app(arguments(command, folder), standalone_mode=False)


def fork(command: str, folder: Path) -> int:
    """Start a run in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(command, folder)
            code = 0
        finally:
            os._exit(code)
    return child


def killed_after(child: int, seconds: float) -> bool:
    """Whether the run was killed after so many seconds; False if it came to its end.

    Raises: RuntimeError if it failed by itself.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a run ended with {status}")
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main(command: str, folder: Path, kills: int) -> list[dict[str, Any]]:
    rng, start = random.Random(kills), time.monotonic()
    assert not killed_after(fork(command, folder / "whole"), 600)
    longest = (time.monotonic() - start) * min(0.5, 3 / kills)
    rounds: list[dict[str, Any]] = [{"folder": "run0", "kills": 0}]
    left = kills
    while True:
        last = rounds[-1]
        if killed_after(fork(command, folder / last["folder"]), rng.uniform(0, longest) if left else 600):
            last["kills"] += 1
            left -= 1
        elif left:
            rounds.append({"folder": f"run{len(rounds)}", "kills": 0})
        else:
            return rounds


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
