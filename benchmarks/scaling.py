"""Images a second of `eval` by torchrun and of `embed` by Ray, with one and with two processes, one thread each.

    python benchmarks/scaling.py

One and two take turns in each round, and a gain is that of a round. What starting costs is left out: of `eval` by the
difference of a long and a short run, of `embed` by the times at which files appear.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from embed_memory import write_images
from scaling_tables import scaling

from tokenreduce.lab.environment import environment

SHORT, LONG = 100, 1000  # images
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
METHOD = ["--model", "fashion_vit", "--method", "ward", "--flops", "0.6"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000, help="of embed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), args.images)
        for number in range(args.rounds):
            for processes in (1, 2):
                rate, work = rate_of_eval(processes)
                found = [{"command": "eval", "images_per_second": rate, "cpu_ms_per_image": work}]
                rate = rate_of_embed(Path(folder), processes, number)
                found += [{"command": "embed", "images_per_second": rate}]
                for row in found:
                    rows.append(row | {"round": number, "processes": processes, "load": os.getloadavg()[0]})
                    print(rows[-1], flush=True)
                    args.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(scaling({"rows": rows}))


def rate_of_eval(processes: int) -> tuple[float, float]:
    """Images a second, and the milliseconds that the cores worked for an image: what others do counts less there."""
    (long, worked), (short, before) = (seconds_of_eval(processes, images) for images in (LONG, SHORT))
    return round((LONG - SHORT) / (long - short), 1), round(1000 * (worked - before) / (LONG - SHORT), 2)


def seconds_of_eval(processes: int, images: int) -> tuple[float, float]:
    """Of the clock, and of all processes' work."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *start, "-m", "tokenreduce", "eval", *METHOD, "--batch-size", "50", "--limit"]
    began, before = time.monotonic(), worked()
    subprocess.run([*command, str(images)], check=True, capture_output=True, env=os.environ | ONE_THREAD)
    return time.monotonic() - began, worked() - before


def worked() -> float:
    """Seconds of work of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rate_of_embed(folder: Path, workers: int, number: int) -> float:
    out = folder / f"features-{workers}-{number}"
    command = [sys.executable, "-m", "tokenreduce", "embed", "--data", str(folder / "images"), *METHOD]
    command += ["--out", str(out), "--workers", str(workers), "--part-size", "100"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | ONE_THREAD)
    times = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    # Every worker has begun once each has written a part.
    return round(100 * (len(times) - 1 - 2 * workers) / (times[-1] - times[2 * workers]), 1)


if __name__ == "__main__":
    main()
