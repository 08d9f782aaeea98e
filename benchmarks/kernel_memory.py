"""Peak extra memory of matching and merging, each measured once in a process of its own (Linux).

python benchmarks/kernel_memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CHANNELS = 384
SIZES = [(batch, 4096, width) for batch in (1, 4) for width in (64, 384)]  # batch, tokens, key channels
SIZES += [(1, n, 64) for n in (1024, 2048, 8192, 16384)]
MIB = 1 << 20


def status(field: str) -> int:
    """Bytes by this line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(choice: str, batch: int, n: int, width: int) -> None:
    """Print in MiB the peaks above the state before, of matching and of both, and the size of what both return."""
    import torch

    from tokenreduce.ops.native import dispatch
    from tokenreduce.reducers.parts.bipartite import match_bipartite

    def peak() -> int:
        return status("VmHWM") - before

    torch.set_num_threads(2)
    with dispatch.using(choice), torch.inference_mode():
        metric, x = torch.randn(batch, n, width), torch.randn(batch, n, CHANNELS)
        match_bipartite(torch.randn(2, 256, 16), 192).merge(torch.randn(2, 256, 16))  # loads code, starts threads
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
        token_map = match_bipartite(metric, n * 3 // 4)
        matching = peak()
        merged = token_map.merge(x)
        both = peak()
    outputs = [token_map.dest, token_map.rep, token_map.sources, *merged]
    returned = sum(out.nbytes for out in outputs if out is not None)
    print(json.dumps([matching / MIB, both / MIB, returned / MIB]))


def rows() -> list[dict[str, float]]:
    """One row for each of `SIZES`; a quarter of the tokens is removed. The kernel counts pages in batches, so that
    figures are wrong by up to half a MiB and may be negative.
    """
    found = []
    for size in SIZES:
        row: dict[str, float] = dict(zip(("batch", "tokens", "key_channels"), size, strict=True))
        for choice, name in (("cpu", ""), ("reference", "reference_")):
            command = [sys.executable, __file__, "--measure", choice, *map(str, size)]
            matching, both, outputs = json.loads(subprocess.check_output(command))
            values = {"matching_mib": matching, "extra_with_outputs_mib": both, "extra_mib": both - outputs}
            row |= {name + key: round(value, 2) for key, value in values.items()}
        found.append(row | {"outputs_mib": round(outputs, 2)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=4, metavar=("CHOICE", "BATCH", "TOKENS", "WIDTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        choice, *size = args.measure
        measure(choice, *map(int, size))
        return
    for row in rows():
        print(json.dumps(row))


if __name__ == "__main__":
    main()
