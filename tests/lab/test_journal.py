"""Finished measurements survive, and are only those of the same thing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab import journal
from tokenreduce.lab.journal import (
    Journal,
    digest,
    digest_of_library,
    digest_of_method,
    digest_of_model,
    marks_of,
)


def test_values_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trials.jsonl"
    Journal(path).add("a", [[0.1, 1 / 3]], {"method": "tome"})
    again = Journal(path)
    assert again.get("a") == [[0.1, 1 / 3]] and again.get("b") is None and len(again) == 1


def test_a_line_that_was_cut_is_measured_again_and_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    first = Journal(path)
    first.add("a", 1, {})
    first.add("b", 2, {})
    path.write_text(path.read_text()[:-9])
    second = Journal(path)
    assert second.get("a") == 1 and second.get("b") is None
    second.add("b", 3, {})
    assert (Journal(path).get("a"), Journal(path).get("b")) == (1, 3)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidValueError, match="cannot be resumed"):
        Journal(tmp_path / "x")
    with pytest.raises(InvalidValueError, match="cannot be written"):
        Journal(tmp_path / "x" / "y").add("a", 1, {})


def test_digests_tell_tensors_models_and_values_apart() -> None:
    x = torch.arange(6.0)
    assert digest(x) == digest(x.clone()) == digest(torch.stack([x, x], 1)[:, 0])
    assert len({digest(x), digest(x.view(2, 3)), digest(x.int()), digest(x + 1), digest(x, 1), digest(x, "1")}) == 6
    model = nn.Linear(3, 2)
    other = copy.deepcopy(model)
    assert digest_of_model(model) == digest_of_model(other)
    with torch.no_grad():
        other.bias[0] += 1e-3
    assert digest_of_model(model) != digest_of_model(other)


def test_the_code_of_a_method_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside that of the library's methods, whose parts they share."""
    own = tmp_path / "own.py"
    own.write_text("one")
    monkeypatch.setattr("inspect.getsourcefile", lambda cls: str(own))
    before = digest_of_method("tome")
    assert digest_of_method("tome") == before
    own.write_text("another")
    assert digest_of_method("tome") != before


@pytest.mark.parametrize("room", ["ops", "maps", "reducers", "budget", "forward", "patches", "patching"])
def test_the_code_of_every_room_that_a_patched_model_runs_counts(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digest_of_library.__wrapped__()
    assert digest_of_library.__wrapped__() == whole
    monkeypatch.setattr(journal, "ROOMS", tuple(one for one in journal.ROOMS if one != room))
    assert digest_of_library.__wrapped__() != whole


def test_the_code_of_kernels_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "csrc" / "cpu" / "match.cpp"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("one")
    monkeypatch.setattr(journal, "PACKAGE", tmp_path / "tokenreduce")
    before = digest_of_library.__wrapped__()
    kernel.write_text("another")
    assert digest_of_library.__wrapped__() != before


def test_a_class_that_was_typed_in_counts_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook there is no file to read, and searches work there without `resume` too."""

    def typed(code: str) -> type:
        names: dict[str, Any] = {"__name__": "__main__" if "resume" in code else "a_cell"}
        exec(code, names)
        return names["Own"]

    text = "class Own:\n    def plan(self, x):\n        return [y + {} for y in x]\n"
    digests = []
    for code in (text.format(1), "\n\n" + text.format(1), text.format(2), text.format(1).replace("x]", "x if y]")):
        own = typed(code)
        monkeypatch.setattr(journal, "lookup", lambda name, own=own: own)
        digests.append(digest_of_method("own"))
    assert digests[0] == digests[1] and len({*digests}) == 3


def test_equal_images_have_equal_marks() -> None:
    images = torch.rand(3, 1, 2, 2)
    images[2] = images[0]
    first, second, third = marks_of(images)
    assert first == third != second and marks_of(images[1:2]) == [second]
