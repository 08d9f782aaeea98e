"""Dependencies point one way, imports stay lean, public names do not collide."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import tokenreduce.patches
import torch

import tokenreduce
from tokenreduce.constant import constant_result

PACKAGE = Path(tokenreduce.__file__).parent
PATCHES = Path(tokenreduce.patches.__file__).parent
# A file may import from its own layer and from those below it.
LAYERS = [
    {"errors", "constant", "exporting"},
    {"ordering"},
    {"kernels"},
    {"token_map", "schedule", "tokens", "attention"},
    {"registry", "places"},
    {"restoring"},
    {"reducers", "flops", "rehearsal", "reduction"},
    {"run", "layer_tokens", "slicing"},
    {"recording"},
    {"stack"},
    {"mac_counter"},
    {"patches", "reporting", "functional"},
    {"finding", "fitting"},
    {"patching"},
    {"backbones", "evaluation", "bench", "visualize"},
    {"advising"},
    {"cli"},
]
# Imported when called: the counter, which asks the run for its phase, and the reducers, which the registry finds.
UPWARD = {("flops", "mac_counter"), ("registry", "reducers")}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tokenreduce"):
            names = [f"tokenreduce.{a.name}" for a in node.names] if node.module == "tokenreduce" else [node.module]
            found |= {part_of(name) for name in names}
    return found


def test_dependencies_point_one_way() -> None:
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    files = [(p, p.relative_to(PACKAGE).parts[0].removesuffix(".py")) for p in PACKAGE.rglob("*.py")]
    files += [(p, "patches") for p in PATCHES.glob("*.py")]
    wrong = []
    for path, part in files:
        if part in ("__init__", "assets"):
            continue
        assert part in level, f"{path.name}: put {part} into a layer"
        for target in imports(path):
            if target in level and level[target] > level[part] and (part, target) not in UPWARD:
                wrong.append(f"{part} imports {target}")
    assert wrong == []


def test_reducers_do_not_know_models_and_patches_do_not_know_methods() -> None:
    for path in (PACKAGE / "reducers").glob("*.py"):
        assert imports(path) <= {
            "registry",
            "token_map",
            "tokens",
            "errors",
            "constant",
            "exporting",
            "ordering",
            "kernels",
            "reducers",
        }
        assert "timm" not in path.read_text().replace("timm's", "")
    for path in PATCHES.glob("*.py"):
        assert imports(path) <= {
            "run",
            "stack",
            "recording",
            "slicing",
            "reduction",
            "errors",
            "flops",
            "token_map",
            "tokens",
            "",
        }


def test_importing_is_lean() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import tokenreduce; new = set(sys.modules) - before; "
        "print([m for m in ('timm', 'transformers', 'torchvision', 'matplotlib', 'typer', 'rich', 'numba') "
        "if m in new], "
        "torch.cuda.is_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] False"


def test_no_public_function_is_named_like_a_submodule() -> None:
    modules = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])} | {"patches"}
    functions = {name for name in tokenreduce.__all__ if not isinstance(getattr(tokenreduce, name), type)}
    assert functions & modules == set()
    assert all(importlib.util.find_spec(f"tokenreduce.{m}") for m in modules)


def test_files_stay_readable() -> None:
    long = {
        p.name: n
        for p in [*PACKAGE.rglob("*.py"), *PATCHES.glob("*.py")]
        if (n := len(p.read_text().splitlines())) > 330
    }
    assert long == {}


def test_our_constant_marker_is_torchs() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs))
