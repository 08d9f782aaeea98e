"""What is here: the card, its driver, versions. Compiling of C++ and CUDA starts, beside what is measured first."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import tokenreduce
from gpu_stages.choices import choices, reasons
from gpu_stages.session import Facts, Session

SECONDS = 15.0
COMPILING = "from tokenreduce.ops.native import dispatch; print(dispatch.load() or dispatch.load_cuda())"
PATIENCE = 30.0  # seconds that the stages which need the compiled kernels wait for them
_compiling: list[subprocess.Popen[str]] = []


def run(session: Session) -> None:
    session.facts |= described() | (card() if not session.tiny else {"gpu": "none"})
    session.write()
    session.add({"stage": "env", **session.facts})
    if not session.tiny and "cuda" not in session.left_out:
        script = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import gpu; {COMPILING}"
        _compiling.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True))


def described() -> Facts:
    """The versions of what takes part."""
    facts: Facts = {"python": platform.python_version(), "tokenreduce": tokenreduce.__version__}
    for name in ("torch", "triton", "timm", "transformers"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    return facts


def card() -> Facts:
    """The GPU and its libraries."""
    found = torch.cuda.get_device_properties(0)
    facts: Facts = {"gpu": found.name, "multiprocessors": found.multi_processor_count, "memory": found.total_memory}
    facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "nvcc": shutil.which("nvcc")}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        facts["driver, clock, highest clock, power limit"] = subprocess.check_output(query, text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        facts["driver, clock, highest clock, power limit"] = str(error)
    return facts


def kernels(session: Session) -> None:
    """Wait for what is compiled, then say for each choice why a kernel is not taken."""
    for process in _compiling:
        try:
            words, _ = process.communicate(timeout=PATIENCE)
            session.add({"stage": "kernels", "compiling": words.strip()[-600:] or "done"})
        except subprocess.TimeoutExpired:
            process.kill()
            os.environ["CUDA_HOME"] = "/nonexistent"  # so that no later call begins to compile
            session.add({"stage": "kernels", "compiling": f"killed after {PATIENCE} s more"})
    _compiling.clear()
    usable = choices(session)
    for choice in usable:
        session.measure(lambda choice=choice: {"why_not": reasons(choice, session)}, choice=choice)
    session.add({"stage": "kernels", "usable": ", ".join(usable)})
