"""Compiling `csrc/cuda/` with nvcc, once, into a library to load after that of `build`, which has the schemas."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tokenreduce.ops.native.build import TARGET, BuildError, build, cache_folder, failed
from tokenreduce.ops.native.build import sources as cpu_sources

CUDA = frozenset({"bipartite_match", "merge_apply", "bipartite_merge"})  # the kernels that `csrc/cuda/` has
OLDEST = 8, 0  # compute capability: the tensor-core instruction of `scores.cuh`
FLAGS = (
    "-O3",
    "-std=c++17",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-DUSE_CUDA",
    f"-DTORCH_TARGET_VERSION={TARGET}",
)
ANYWHERE = (
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",  # the driver compiles the last for newer GPUs
)


def sources() -> list[Path]:
    """The CUDA files, of an installed package or of its repository."""
    return sorted((cpu_sources()[0].parent / "cuda").glob("*.cu"))


def compiler() -> Path | None:
    """The nvcc of `CUDA_HOME`, or the one on the PATH, or None."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if found is None:
        return None
    path = Path(found)
    real = path.resolve()
    return real if real.name == path.name else path  # ccache must be called by the name of the link


def why_not() -> str:
    """Why nothing can be compiled here; empty if it can."""
    home = os.environ.get("CUDA_HOME")
    if compiler() is None:
        where = f"in CUDA_HOME={home}" if home else "on the PATH"
        return f"no CUDA compiler (nvcc) {where}; install one or set CUDA_HOME"
    if not torch.version.cuda:
        return f"PyTorch {torch.__version__} is built without CUDA"
    old = [capability for capability in capabilities() if capability < OLDEST]
    if old:
        return f"a GPU here has compute capability {old[0][0]}.{old[0][1]}; they need {OLDEST[0]}.{OLDEST[1]}"
    return ""


@lru_cache(maxsize=1)
def capabilities() -> list[tuple[int, int]]:
    """Of the GPUs here, each once; none where there is no GPU."""
    if not torch.cuda.is_available():
        return []
    return sorted({torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count())})


def flags() -> list[str]:
    """`FLAGS` and those for the GPUs here; without a GPU for two generations and what follows."""
    numbers = [f"{major}{minor}" for major, minor in capabilities()]
    return [*FLAGS, *([f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers] or ANYWHERE)]


def run(*commands: Sequence[str]) -> list[str]:
    """What nvcc says to each of these lists of arguments; all run at once.

    Raises: BuildError with its words if one fails.
    """
    path = compiler()
    if path is None:
        raise BuildError(why_not())
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    jobs = [subprocess.Popen([str(path), *arguments], **pipes) for arguments in commands]
    words = [job.communicate()[0] for job in jobs]
    for job, said in zip(jobs, words, strict=True):
        if job.returncode:
            raise failed(job.returncode, f"{path} failed", said)
    return words


def toolkit() -> Path | None:
    """The folder of nvcc's headers and libraries by its own words, as nvcc may be a script that calls another one."""
    words = run(["--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])[0].splitlines()
    top = next((line.partition("TOP=")[2] for line in words if line.startswith("#$ TOP=")), None)
    return Path(top).resolve() if top else None


def runtime() -> list[str]:
    """Arguments that link libcudart: its file in the toolkit, or nvcc's own choice."""
    folder = toolkit()
    places = ("lib64", "lib", "targets/*/lib")
    # By its file, because the toolkit's packages on PyPI have it under its versioned name only.
    found = [path for place in places for path in sorted(folder.glob(f"{place}/libcudart.so*"))] if folder else []
    if not found:
        return ["-cudart=shared"]
    return ["-cudart=none", f"-Xlinker={found[0]}", f"-Xlinker=-rpath={found[0].parent}"]


def library() -> Path:
    """Where the library of these sources, of this nvcc and for the GPUs here is or will be."""
    folder = cpu_sources()[0].parent
    content = hashlib.sha256(repr((flags(), stamp())).encode())
    for path in sorted({*sources(), *folder.glob("*.h"), *folder.glob("cuda/*.*h")}):
        content.update(path.read_bytes())
    return cache_folder() / f"kernels_cuda_{content.hexdigest()[:16]}.so"


def stamp() -> tuple[str, int, int]:
    """Tells one nvcc from another without running it, which takes longer than loading the library.

    Raises: BuildError if there is none.
    """
    path = compiler()
    if path is None:
        raise BuildError(why_not())
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def compile_library(path: Path) -> None:
    root, options = Path(torch.__file__).parent, flags()
    objects = {source: str(path.parent / f"{source.stem}.o") for source in sources()}
    run(*([*options, f"-I{root / 'include'}", "-c", str(source), "-o", out] for source, out in objects.items()))
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch_cuda", "-lc10", *runtime()]
    run([*options, "-shared", "-o", str(path), *objects.values(), *libraries])


def main() -> int:
    """Compile it, and say where it is or why not; 1 if it failed."""
    reason = why_not()
    if reason:
        print(f"CUDA kernels SKIPPED, nothing was compiled: {reason}", file=sys.stderr)
        return 0
    try:
        path = library()
        build(path, compile_library)
    except BuildError as error:
        print(f"CUDA kernels FAILED: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0
