"""`Journal`: finished measurements in a file of JSON lines, so that a search that was killed goes on where it was."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.reducers.registry import lookup

PACKAGE = Path(__file__).parents[1]
ROOMS = ("ops", "maps", "reducers", "budget", "forward", "patches", "patching")  # what a patched model runs
CODE = (".py", ".cpp", ".h", ".cu", ".cuh")


class Journal:
    """Values by key. With a file each is on the disk before the next is measured.

    A key says everything that a value depends on, so files of other models, images or versions do no harm: their lines
    are never asked for.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._values: dict[str, Any] = {}
        if self.path is None or not self.path.exists():
            return
        try:
            text = self.path.read_text()
            with self.path.open("a") as file:
                if text and not text.endswith("\n"):  # the writer was killed inside a line
                    file.write("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValueError(f"{path} cannot be resumed ({error}); name another file, or a new one") from None
        for line in text.splitlines():
            self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._values[entry["key"]] = entry["value"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return  # half a line

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Any:
        """The value of this key, or None."""
        return self._values.get(key)

    def add(self, key: str, value: Any, about: dict[str, Any]) -> None:
        """Keep a value; `about` is for people who read the file.

        Raises: ValueError if the file cannot be written.
        """
        self._values[key] = value
        if self.path is None:
            return
        line = json.dumps({"key": key, **about, "value": value}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InvalidValueError(f"{self.path} cannot be written ({error}); choose another place") from None


def digest(*parts: Any) -> str:
    """A hash of JSON-able values and tensors."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            held = part.detach().cpu().contiguous()
            found.update(ctypes.string_at(held.data_ptr(), held.nbytes))  # NumPy may not be there
        else:
            found.update(json.dumps(part, sort_keys=True).encode())
    return found.hexdigest()[:24]


def marks_of(images: Tensor) -> list[str]:
    """A short hash of each image, as a model takes it."""
    return [digest(image)[:16] for image in images]


def digest_of_method(name: str) -> str:
    """A hash of the code that a patched model may run: the method's, and the library's."""
    own = lookup(name)
    try:
        file = inspect.getsourcefile(own)
    except (OSError, TypeError):  # a class that was typed in has no file
        file = None
    if file is not None and Path(file).is_file():
        return digest(digest_of_library(), Path(file).read_bytes().hex())
    members = {name: getattr(member, "__func__", member) for name, member in vars(own).items()}
    codes = {name: facts_of_code(member.__code__) for name, member in members.items() if hasattr(member, "__code__")}
    return digest(digest_of_library(), codes)


@cache
def digest_of_library() -> str:
    """A hash of the files that decide what a patched model computes. They are those that were imported, so once."""
    found = hashlib.sha256()
    folders = [Path(part) for room in ROOMS for part in import_module(f"tokenreduce.{room}").__path__]
    folders += [path for path in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if path.is_dir()]
    for folder in folders:
        for file in sorted(path for path in folder.rglob("*") if path.suffix in CODE):
            found.update(str(file.relative_to(folder)).encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def facts_of_code(code: CodeType) -> list[Any]:
    """What a function does, without where its lines stood."""
    inner = [facts_of_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def digest_of_model(model: nn.Module) -> str:
    """A hash of the classes, settings and weights of a model."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return digest(repr(model), list(model.state_dict()), *tensors)
