"""What code does, as digests: of Python without comments, docstrings and blank lines."""

from __future__ import annotations

import ast
import hashlib
import io
import subprocess
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def files_at(commit: str, paths: tuple[str, ...]) -> list[str]:
    """Path and digest of each file at a commit."""
    found = []
    for line in git("ls-tree", "-r", commit, "--", *paths).splitlines():
        about, _, name = line.partition("\t")
        found.append(f"{name} {digest_of_blob(about.split()[2], name.endswith('.py'))}")
    return sorted(found)


@cache
def files_now(paths: tuple[str, ...]) -> list[str]:
    """The same of the files that are here; of those that git has."""
    names = [name for name in git("ls-files", "--", *paths).splitlines() if (ROOT / name).is_file()]
    return sorted(f"{name} {digest_of_file((ROOT / name).read_bytes(), name.endswith('.py'))}" for name in names)


@cache
def digest_of_blob(blob: str, python: bool) -> str:
    data = subprocess.run(["git", "cat-file", "blob", blob], cwd=ROOT, capture_output=True, check=True).stdout
    return digest_of_file(data, python)


def digest_of_file(data: bytes, python: bool) -> str:
    return hashlib.sha1(code_alone(data.decode()).encode() if python else data).hexdigest()


def code_alone(source: str) -> str:
    """The lines of a Python file that do something; not a syntax tree, whose form depends on Python's version."""
    lines = source.split("\n")  # as Python counts them: no other character ends a line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
