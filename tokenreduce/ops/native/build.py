"""Compiling `csrc/` once, where it is used, into a library that any torch from 2.11 on loads (stable ABI)."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[2]
TARGET = "0x020b000000000000"  # torch 2.11, the oldest supported
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp-simd", f"-DTORCH_TARGET_VERSION={TARGET}")


class BuildError(RuntimeError):
    """Why the kernels could not be compiled."""


def sources() -> list[Path]:
    """The C++ files, of an installed package or of its repository."""
    folder = next((path for path in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if path.is_dir()), None)
    if folder is None:
        raise BuildError("the sources (csrc/) are not installed")
    return [folder / "ops.cpp", *sorted((folder / "cpu").glob("*.cpp"))]


def compiler() -> str:
    """The C++ compiler: `CXX`, or g++, or clang++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({' or '.join(names)}); install one or set CXX")
    return found


def flags() -> list[str]:
    """`FLAGS`, then those of `TOKENREDUCE_CXXFLAGS`, for compiling and linking."""
    return [*FLAGS, *shlex.split(os.environ.get("TOKENREDUCE_CXXFLAGS", ""))]


def cache_folder() -> Path:
    """Where compiled libraries are kept: `TOKENREDUCE_CACHE`, or the user's cache folder."""
    given = os.environ.get("TOKENREDUCE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenreduce"


def library() -> Path:
    """Where the library of these sources, of this compiler, its flags and this processor is or will be."""
    files = sources()
    content = hashlib.sha256(repr((flags(), compiler(), processor())).encode())
    for path in sorted({*files, *files[0].parent.rglob("*.h")}):
        content.update(path.read_bytes())
    return cache_folder() / f"kernels_{content.hexdigest()[:16]}.so"


def processor() -> str:
    """What a processor can do, so that a folder shared by several machines has a library for each kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def build(path: Path, compile_it: Callable[[Path], None]) -> None:
    """Compile the library at `path` with `compile_it`, unless another process has.

    Raises: BuildError with the compiler's own words.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            if not path.exists():
                compile_it(Path(scratch) / path.name)
                (Path(scratch) / path.name).replace(path)
    except OSError as error:
        raise BuildError(f"the kernels cannot be written to {path.parent} ({error}); set TOKENREDUCE_CACHE") from None


def compile_library(path: Path) -> None:
    root = Path(torch.__file__).parent
    jobs = []
    for source in sources():
        out = path.parent / f"{source.stem}.o"
        command = [compiler(), *flags(), f"-I{root / 'include'}", "-c", str(source), "-o", str(out)]
        jobs.append((out, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)))
    for out, job in jobs:
        words, _ = job.communicate()
        if job.returncode:
            raise BuildError(f"{compiler()} failed on {out.stem}.cpp: {words.strip()[-2000:]}")
    objects = [str(out) for out, _ in jobs]
    command = [compiler(), *flags(), "-shared", "-o", str(path), *objects, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(f"{compiler()} failed to link the kernels: {done.stdout.strip()[-2000:]}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock ends with the process that holds it."""
    import fcntl  # not on Windows, where nothing of this is built

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
