"""Compiling `csrc/` once, where it is used, into a library that any torch from 2.10 on loads (stable ABI)."""

from __future__ import annotations

import hashlib
import logging
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
TARGET = "0x020a000000000000"  # torch 2.10, the oldest supported
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp-simd", f"-DTORCH_TARGET_VERSION={TARGET}")


class BuildError(RuntimeError):
    """Why the kernels could not be compiled."""


class CompileError(BuildError):
    """What the compiler says to the sources: it would say so again."""


def failed(code: int, what: str, said: str) -> BuildError:
    """The error for a compiler that ended with `code`; a full disk or a killed process may be gone the next time."""
    passing = code < 0 or "No space left" in said or "Killed" in said
    return (BuildError if passing else CompileError)(f"{what}: {said.strip()[-2000:]}")


def failure(path: Path) -> Path:
    """The file that remembers why the library at `path` cannot be compiled."""
    return path.with_suffix(".failed")


def forget(path: Path) -> None:
    """Remove a library, and what is remembered of its failure."""
    path.unlink(missing_ok=True)
    failure(path).unlink(missing_ok=True)


def sources() -> list[Path]:
    """The C++ files, of an installed package or of its repository."""
    folder = next((path for path in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if path.is_dir()), None)
    if folder is None:
        raise BuildError("the sources (csrc/) are not installed")
    return [folder / "ops.cpp", *sorted((folder / "cpu").glob("*.cpp"))]


def compiler() -> list[str]:
    """The C++ compiler as a command: `CXX`, which may have several words (`ccache g++`), or g++, or clang++."""
    given = os.environ.get("CXX", "").strip()
    commands = [[name] for name in ([given] if given else ["g++", "clang++"])]
    if given:
        commands.append(words("CXX", given))  # after the path as a whole, which may have spaces
    for name, *more in commands:
        found = shutil.which(name)
        if found:
            return [found, *more]
    raise BuildError(f"no C++ compiler ({given or 'g++ or clang++'}); install one or set CXX")


def words(variable: str, text: str) -> list[str]:
    """The words of an environment variable, split as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"{variable} is {text!r}, which cannot be split into words: {error}") from None


def flags() -> list[str]:
    """`FLAGS`, then those of `TOKENREDUCE_CXXFLAGS`, for compiling and linking."""
    return [*FLAGS, *words("TOKENREDUCE_CXXFLAGS", os.environ.get("TOKENREDUCE_CXXFLAGS", ""))]


def cache_folder() -> Path:
    """Where compiled libraries are kept: `TOKENREDUCE_CACHE`, or the user's cache folder."""
    given = os.environ.get("TOKENREDUCE_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenreduce"
    except RuntimeError:  # no HOME, and a user without an entry in passwd
        raise BuildError("the user has no home folder to keep compiled kernels in; set TOKENREDUCE_CACHE") from None


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
    """Compile the library at `path` with `compile_it`, unless another process has, or has tried and failed.

    Raises: BuildError with the compiler's own words.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            if not path.exists():
                compile_once(Path(scratch) / path.name, failure(path), compile_it)
                (Path(scratch) / path.name).replace(path)
    except OSError as error:
        raise BuildError(f"the kernels cannot be written to {path.parent} ({error}); set TOKENREDUCE_CACHE") from None


def compile_once(path: Path, refused: Path, compile_it: Callable[[Path], None]) -> None:
    """Compile, unless the file `refused` says that it failed; if it fails, say so and write that file."""
    if refused.exists():
        raise BuildError(f"{refused.read_text()} (remembered; `tokenreduce kernels --build` tries again)")
    log = logging.getLogger("tokenreduce")
    log.warning("compiling kernels, once: up to a minute (TOKENREDUCE_KERNELS=reference does without)")
    try:
        compile_it(path)
    except CompileError as error:
        refused.write_text(str(error))
        log.warning("kernels could not be compiled, PyTorch runs instead, and this is remembered: %s", error)
        raise


def compile_library(path: Path) -> None:
    root = Path(torch.__file__).parent
    jobs = []
    for source in sources():
        out = path.parent / f"{source.stem}.o"
        command = [*compiler(), *flags(), f"-I{root / 'include'}", "-c", str(source), "-o", str(out)]
        jobs.append((out, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)))
    for out, job in jobs:
        said, _ = job.communicate()
        if job.returncode:
            raise failed(job.returncode, f"{' '.join(compiler())} failed on {out.stem}.cpp", said)
    objects = [str(out) for out, _ in jobs]
    command = [*compiler(), *flags(), "-shared", "-o", str(path), *objects, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise failed(done.returncode, f"{' '.join(compiler())} failed to link the kernels", done.stdout)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock ends with the process that holds it."""
    import fcntl  # not on Windows, where nothing of this is built

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
