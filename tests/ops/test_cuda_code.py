"""What the CUDA compiler makes of `csrc/cuda/`: tensor cores, wide loads, nothing spilled. No GPU is needed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from tokenreduce.ops.native import build, build_cuda


def disassembler() -> str | None:
    """`cuobjdump` of the toolkit, of the PATH, or the one that Triton brings."""
    nvcc, triton = build_cuda.compiler(), importlib.util.find_spec("triton")
    places = [str(nvcc.parent)] if nvcc else []
    if triton and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    found = [shutil.which("cuobjdump", path=place) for place in (*places, None)]
    return next(filter(None, found), None)


def why_not() -> str:
    return build_cuda.why_not() or ("" if disassembler() else "no cuobjdump, of the CUDA toolkit or of Triton")


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"the CUDA kernels were NOT compiled and read: {why_not()}")


@lru_cache(maxsize=1)
def functions() -> list[tuple[str, str]]:
    """Name and machine code of each kernel for each kind of GPU."""
    path = build_cuda.library()
    build.build(path, build_cuda.compile_library)
    words = subprocess.run([str(disassembler()), "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n\s*Function : ", words)[1:]
    return [(part.split()[0], part) for part in parts]


def named(pattern: str) -> list[str]:
    found = [code for name, code in functions() if re.search(pattern, name)]
    assert found, f"no kernel is named {pattern}"
    return found


def test_nothing_is_spilled() -> None:
    spilled = [name for name, code in functions() if re.search(r"\b(LDL|STL)\b", code)]
    assert not spilled


@pytest.mark.parametrize("name", ["match_image", "find_best"])
def test_scores_come_from_tensor_cores(name: str) -> None:
    for code in named(name):
        assert len(re.findall(r"\bHMMA\.16816\.F32", code)) >= 24


# Of packed rows: 8 elements of half precision, 4 floats, 2 doubles.
PACKED = r"(HalfELi8E|BFloat16ELi8E|IfLi4E|IdLi2E)"


@pytest.mark.parametrize("name", ["match_image", "write_units", "merge_rows"])
def test_tokens_are_read_sixteen_bytes_at_a_time(name: str) -> None:
    for code in named(name + r"\w*" + PACKED):
        assert re.search(r"\bLDG\.E\.(\w+\.)*128\b", code)


def test_rows_and_directions_are_read_and_written_alike() -> None:
    for code in named(r"merge_rows\w*" + PACKED):
        assert re.search(r"\bSTG\.E\.(\w+\.)*128\b", code)
    for code in named("match_image"):
        assert re.search(r"\bLDS\.128\b", code)
    for code in named("find_best"):
        assert len(re.findall(r"\bLDG\.E\.(\w+\.)*128\b", code)) >= 12
