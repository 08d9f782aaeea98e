"""Compiling `csrc/cuda/` with nvcc, once, into a library to load after that of `build`, which has the schemas."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tokenreduce.ops.native.build import TARGET, BuildError, build, cache_folder
from tokenreduce.ops.native.build import sources as cpu_sources

FLAGS = (
    "-O3",
    "-std=c++17",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-DUSE_CUDA",
    f"-DTORCH_TARGET_VERSION={TARGET}",
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
    return "" if torch.version.cuda else f"PyTorch {torch.__version__} is built without CUDA"


def run(*arguments: str) -> str:
    """What nvcc says to these arguments.

    Raises: BuildError with these words if it fails.
    """
    path = compiler()
    if path is None:
        raise BuildError(why_not())
    done = subprocess.run([str(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(f"{path} failed: {done.stdout.strip()[-2000:]}")
    return done.stdout


def toolkit() -> Path | None:
    """The folder of nvcc's headers and libraries by its own words, as nvcc may be a script that calls another one."""
    words = run("--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull).splitlines()
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
    """Where the library of these sources and of this nvcc is or will be."""
    folder = cpu_sources()[0].parent
    content = hashlib.sha256(repr((FLAGS, run("--version"))).encode())
    for path in sorted({*sources(), *folder.glob("*.h"), *folder.glob("cuda/*.*h")}):
        content.update(path.read_bytes())
    return cache_folder() / f"kernels_cuda_{content.hexdigest()[:16]}.so"


def compile_library(path: Path) -> None:
    root = Path(torch.__file__).parent
    objects = []
    for source in sources():
        objects.append(str(path.parent / f"{source.stem}.o"))
        run(*FLAGS, f"-I{root / 'include'}", "-c", str(source), "-o", objects[-1])
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch_cuda", "-lc10", *runtime()]
    run(*FLAGS, "-shared", "-o", str(path), *objects, *libraries)


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
