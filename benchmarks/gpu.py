"""What the library does on a GPU, in one run of some minutes -> DIR/rows.json, written after every measurement.

python benchmarks/gpu.py --out DIR
python benchmarks/gpu.py --out DIR --cpu            # the smallest sizes on a CPU, to see that every stage runs
python benchmarks/gpu.py --out DIR --only models,trace --minutes 4
python benchmarks/gpu.py --out DIR --no-cuda        # csrc/cuda is neither compiled nor measured

Needs PyTorch and timm, and of this library only what this clone has: it need not be installed. Every stage has a
deadline and every row is written when it is measured, so that a run that is cut off still tells what it found. What
fails is a row that says why, and the next measurement runs. An error that ends all work of a process on the GPU starts
another process, which goes on behind it. What is in DIR already is not measured again.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import sys
import time
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESTARTS = "TOKENREDUCE_GPU_RESTARTS"  # how often a lost GPU has started this script anew


class Clone(MetaPathFinder):
    """Finds `tokenreduce.patches` in the clone where the library is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "tokenreduce.patches":
            return None
        folder = HERE.parent / "patches"
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.append(Clone())
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gpu_stages import attention, ceilings, clusters, compiled, correct, env, host, micro, models, summary, trace  # noqa: E402
from gpu_stages.cases import resolve  # noqa: E402
from gpu_stages.session import GpuLostError, Session  # noqa: E402

# Those that decide come first: a run may be cut off.
STAGES = {
    "env": (env.run, env.SECONDS),
    "kernels": (env.kernels, env.PATIENCE),
    "clusters": (clusters.run, clusters.SECONDS),
    "correct": (correct.run, correct.SECONDS),
    "models": (models.run, models.SECONDS),
    "trace": (trace.run, trace.SECONDS),
    "host": (host.run, host.SECONDS),
    "compile": (compiled.run, compiled.SECONDS),
    "more models": (models.more, models.MORE_SECONDS),
    "micro": (micro.run, micro.SECONDS),
    "ceilings": (ceilings.run, ceilings.SECONDS),
    "attention": (attention.run, attention.SECONDS),
    "sweep": (attention.sweep, attention.SWEEP_SECONDS),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR")
    parser.add_argument("--cpu", action="store_true", help="the smallest sizes on a CPU")
    parser.add_argument("--only", default=",".join(STAGES), metavar="STAGE,...")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--no-cuda", action="store_true", help="leave csrc/cuda out, which takes long to compile")
    parser.add_argument("--resolve", action="store_true", help="search the counts of flops=0.6 anew, and nothing else")
    return parser.parse_args()


def main() -> None:
    start, args = time.time(), parse()
    if args.resolve:
        resolve()
        return
    wanted = args.only.split(",")
    if set(wanted) - set(STAGES):
        sys.exit(f"--only {args.only}: stages are {', '.join(STAGES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(args.out / "rows.json", args.cpu, start + 60 * args.minutes)
    session.left_out = ("cuda",) if args.no_cuda else ()
    # A hanging kernel would hold the machine: a minute after the end the process says where it is and ends.
    faulthandler.dump_traceback_later(60 * args.minutes + 60, exit=True)
    if RESTARTS not in os.environ:
        # What other stages rely on: nothing compiles while something else is timed.
        needed = ("env",) if args.no_cuda else ("env", "kernels")
        wanted = [name for name in STAGES if name in (*needed, *wanted)]
    for place, name in enumerate(wanted):
        try:
            run_stage(session, name)
        except GpuLostError as error:
            session.add({"stage": name, "lost": str(error)})
            start_anew(session, wanted[place:])
        if name == "models":
            summary.show(session)  # the stages behind it may be cut off
    summary.show(session)
    print(f"{time.time() - start:.0f} s", flush=True)


def run_stage(session: Session, name: str) -> None:
    run, seconds = STAGES[name]
    begun = time.time()
    session.begin(name, seconds)
    try:
        run(session)
    except GpuLostError:
        raise
    except Exception as error:  # the next stage must still run
        session.add({"stage": name, "failed": f"{type(error).__name__}: {error}"[:600]})
        traceback.print_exc()
    print(f"-- {name}: {time.time() - begun:.1f} s", flush=True)


def start_anew(session: Session, stages: list[str]) -> None:
    """Replace this process by one that goes on with these stages."""
    restarts = int(os.environ.get(RESTARTS, 0))
    if restarts >= 4:
        sys.exit("the GPU was lost too often")
    os.environ[RESTARTS] = str(restarts + 1)
    minutes = max(0.2, (session.ends - time.time()) / 60)
    out = str(session.file.parent)
    command = [sys.executable, __file__, "--out", out, "--only", ",".join(stages), "--minutes", f"{minutes:.2f}"]
    command += ["--no-cuda"] if session.left_out else []
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
