"""Memory of `tokenreduce embed` over many images: resident memory of all its processes, sampled while it runs.

python benchmarks/embed_memory.py --count 20000 --out benchmarks/results/embed_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tokenreduce.lab.environment import environment

SECONDS = 1.0  # between two samples
KINDS = {"driver": "tokenreduce embed", "model": "MapWorker", "reader": "ray::", "store": "raylet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/embed_memory.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, features = Path(folder, "images"), Path(folder, "features")
        write_images(images, args.count)
        command = [sys.executable, "-m", "tokenreduce", "embed", "--data", str(images), "--model", "fashion_vit"]
        command += ["--method", "ward", "--flops", "0.6", "--workers", str(args.workers), "--out", str(features)]
        began = time.monotonic()
        samples = []
        with subprocess.Popen(command) as job:
            while job.poll() is None:
                done = len(list(features.glob("part-*.parquet")))
                samples.append({"s": round(time.monotonic() - began, 1), "parts": done, **memory(job.pid)})
                time.sleep(SECONDS)
        if job.returncode:
            raise SystemExit(job.returncode)
        seconds = time.monotonic() - began
    data = {"images": args.count, "workers": args.workers, "seconds": round(seconds, 1), "environment": environment()}
    args.out.write_text(json.dumps({**data, "samples": samples}) + "\n")
    print(summary(samples), f"{seconds:.0f} s")


def write_images(folder: Path, count: int) -> None:
    """Random pictures of 32 x 32 pixels, 1,000 in a folder."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number // 1000) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(path, compress_level=1)


def memory(driver: int) -> dict[str, float]:
    """MiB of proportional memory by kind of process: shared pages count once over all."""
    found = dict.fromkeys(KINDS, 0.0)
    family = {driver}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if pid != driver and parent not in family:
                continue
            family.add(pid)
            words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            kilobytes = int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0])
        except (OSError, IndexError):
            continue  # it has ended
        kind = "driver" if pid == driver else next((kind for kind, word in KINDS.items() if word in words), "reader")
        found[kind] += round(kilobytes / 1024, 1)
    return found


def summary(samples: list[dict[str, float]]) -> str:
    """Memory at a quarter of the parts and at their end."""
    last = max(one["parts"] for one in samples)
    quarter = next(one for one in samples if one["parts"] >= last / 4)
    end = next(one for one in samples if one["parts"] >= last * 0.95 and one["model"])
    return "; ".join(f"{kind} {quarter[kind]:.0f} -> {end[kind]:.0f} MiB" for kind in KINDS)


if __name__ == "__main__":
    main()
