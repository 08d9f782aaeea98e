"""Imports point one way, no files import each other in a circle, the root stays small, files stay readable.

All imports count: relative ones, those inside functions, those for types only. There is no list of exceptions.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tokenreduce.patches
import tomllib
import torch

import tokenreduce
from tokenreduce.ops.tracing import constant_result

ROOT = Path(__file__).parents[1]
PACKAGE, PATCHES = Path(tokenreduce.__file__).parent, Path(tokenreduce.patches.__path__[0])
# From the ground up: a file imports from rooms below its own, and from its own.
ROOMS = (
    ("errors",),
    ("ops",),  # with ops/native: kernels and what calls them
    ("maps",),
    ("reducers",),
    ("reducers", "parts"),
    ("reducers", "methods"),
    ("budget",),
    ("forward",),
    ("forward", "language"),  # rows that enter a language model
    ("models",),
    ("patches", "shared"),
    ("patches", "open_clip"),
    ("patches", "scan"),
    ("patches", "timm"),
    ("patches", "torchvision"),
    ("patches", "transformers"),
    ("patches", "vision_language"),
    ("patches",),
    ("patching",),
    ("lab",),
    ("lab", "data"),
    ("lab", "shipped"),
    ("lab", "speed"),
    ("lab", "quality"),
    ("lab", "search"),
    ("lab", "embedding"),
    ("lab", "comparing"),
    (),  # the public names
    ("cli",),
    ("__main__",),  # python -m tokenreduce
)
# Files that no import names: they are found in these folders.
FOUND = (("reducers", "methods"), *(room for room in ROOMS if room[:1] == ("patches",) and len(room) == 2))
Module = tuple[str, ...]


def files() -> dict[Module, Path]:
    """Every file by its name below `tokenreduce`; a package by the name of its folder."""
    found = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    found |= {("patches", *path.relative_to(PATCHES).with_suffix("").parts): path for path in PATCHES.rglob("*.py")}
    return {name[:-1] if name[-1] == "__init__" else name: path for name, path in found.items()}


FILES = files()


def imported(name: Module, path: Path) -> Iterator[Module]:
    """The files that a file imports."""
    here = name if path.name == "__init__.py" else name[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                if parts[0] == "tokenreduce":
                    yield parts[1:]
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = here[: len(here) - node.level + 1] + module
            elif module[:1] == ("tokenreduce",):
                base = module[1:]
            else:
                continue
            for alias in node.names:
                yield (*base, alias.name) if (*base, alias.name) in FILES else base


GRAPH = {name: sorted(set(imported(name, path)) - {name}) for name, path in FILES.items()}


def room_of(name: Module) -> Module:
    """The folder of a file; `errors.py` and the root are rooms of their own."""
    room = name if name in ROOMS else name[:-1]
    return room[:1] if room[:1] == ("ops",) else room


def test_every_import_is_of_a_file_that_exists() -> None:
    assert {(name, target) for name, targets in GRAPH.items() for target in targets if target not in FILES} == set()
    assert len(GRAPH) > 150 and ("forward", "run") in GRAPH[("forward", "stack")]


def test_imports_point_downwards() -> None:
    level = {room: i for i, room in enumerate(ROOMS)}
    assert {room_of(name) for name in FILES} == set(ROOMS)
    upward = [
        f"{'.'.join(name)} imports {'.'.join(target)}"
        for name, targets in GRAPH.items()
        for target in targets
        if level[room_of(target)] > level[room_of(name)]
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle() -> None:
    done: set[Module] = set()

    def visit(name: Module, path: tuple[Module, ...]) -> None:
        assert name not in path, " -> ".join(".".join(part) for part in (*path[path.index(name) :], name))
        if name not in done:
            for target in GRAPH[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())
    assert len(done) == len(FILES)


def test_methods_and_commands_and_families_stand_alone() -> None:
    for room in (("reducers", "methods"), ("cli",)):
        members = {name for name in FILES if room_of(name) == room and name != room}
        shared = ("arguments", "output", "schedules", "writing", "app")
        commands = {name for name in members if room != ("cli",) or name[-1] not in shared}
        for name in commands:
            assert not commands & set(GRAPH[name]), name
    for name in FILES:
        if name[:1] == ("patches",) and len(name) == 3 and name[1] != "shared":
            own = {target for target in GRAPH[name] if target[:1] == ("patches",)}
            others = {t for t in own if t[1:2] != ("shared",) and not t[-1].startswith("_") and t not in parents(name)}
            assert not others, f"{name} imports {others}"


def parents(name: Module) -> set[Module]:
    """The families that a family may build on."""
    named = {"siglip2": ("siglip",), "naflexvit": ("eva", "vit")}
    return {(*name[:-1], parent) for parent in named.get(name[-1], ())}


def test_methods_know_no_models_and_families_know_no_methods() -> None:
    for name, targets in GRAPH.items():
        rooms = {room_of(target) for target in targets}
        if room_of(name) == ("reducers", "methods"):
            assert rooms <= {("errors",), ("ops",), ("maps",), ("reducers",), ("reducers", "parts")}
            assert "timm" not in FILES[name].read_text().replace("timm's", "")
        if name[:1] == ("patches",):
            assert not {room for room in rooms if room[:1] == ("reducers",) and len(room) > 1}, name
    assert {room_of(name) for name in GRAPH if name and name[-1] in ("tome", "vit")} <= set(FOUND)


def test_the_root_is_small() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert len(names - {"__main__.py"}) <= 12, sorted(names)  # Python wants `-m tokenreduce` to be there


def test_every_folder_is_packaged() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        "tokenreduce",
        *(".".join(("tokenreduce", *name)) for name, path in FILES.items() if name and is_package(path)),
    }
    sources = {f"tokenreduce.csrc{suffix}" for suffix in ("", ".cpu", ".cuda")}
    assert listed == there | sources
    assert {path.parent.relative_to(ROOT / "csrc") for path in (ROOT / "csrc").rglob("*.[ch]*")} == {
        Path(),
        Path("cpu"),
        Path("cuda"),
    }


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def test_importing_is_lean() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import tokenreduce; new = set(sys.modules) - before; "
        "print([m for m in ('timm', 'transformers', 'torchvision', 'matplotlib', 'typer', 'rich', 'numba', 'triton', "
        "'PIL', 'optuna', 'plotly') "
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
    sources = [*FILES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    sources += [
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "docs/hooks").glob("*.py"),
        *(ROOT / "csrc").rglob("*.[ch]*"),
    ]
    assert {p.name: n for p in sources if (n := len(p.read_text().splitlines())) > 300} == {}


def test_our_constant_marker_is_torchs() -> None:
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs))
