"""What Triton makes of a kernel for a GPU that need not be there: its instructions, registers, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Cubin(NamedTuple):
    mnemonics: frozenset[str]  # without what follows the first dot
    instructions: frozenset[str]  # whole, as in HMMA.16816.F32
    registers: int  # a thread
    spills: int  # loads and stores of local memory
    shared: int  # bytes a program

    @property
    def uses_tensor_cores(self) -> bool:
        return bool(self.mnemonics & {"HMMA", "HGMMA"})


def compiled(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    warps: int = 4,
    stages: int = 3,
    arch: int = 90,
    multiples_of_16: Sequence[str] = (),
) -> Cubin:
    """The cubin of `kernel` for the architecture `arch`, 80 or 90.

    Args:
        types: of all arguments that are no constants, as in `{"x": "*fp16", "n": "i32", "scale": "fp32"}`; what
            pointers point to is aligned to 16 bytes, as it is in PyTorch's own tensors.
        constants: of all others.
        multiples_of_16: arguments for which Triton makes a kernel of its own because 16 divides them.
    """
    names = kernel.arg_names
    aligned = [name for name in types if types[name].startswith("*") or name in multiples_of_16]
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    lines, usage = dumped(made.asm["cubin"])
    instructions = frozenset(lines)
    mnemonics = frozenset(line.split(".")[0] for line in lines)
    spills = sum(line.split(".")[0] in ("LDL", "STL") for line in lines)
    return Cubin(mnemonics, instructions, usage, spills, made.metadata.shared)


def dumped(cubin: bytes) -> tuple[list[str], int]:
    """The names of all instructions in their order, and the registers of a thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        sass, usage = (
            subprocess.run([OBJDUMP, option, file], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, usage
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass, re.MULTILINE), int(found[1])
