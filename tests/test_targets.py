"""`benchmarks/targets.py`: how its rows are shown, and that its results are of methods and targets that there are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import script

import tokenreduce

tables, targets = script("target_tables"), script("targets")
DATA = json.loads((Path(__file__).parents[1] / "benchmarks/results/targets.json").read_text())
ROWS = {
    "unpatched": {"ONNX Runtime": "right: 1e-07", "Core ML": "converts"},
    "tome": {"ONNX Runtime": "wrong: 2e-02", "ExecuTorch": "right: 1e-07, portable", "Core ML": "converts, portable"},
    "ward": {"ExecuTorch": "refused: RuntimeError: no kernel", "Core ML": "crashed: exit code -11"},
    "ward, rounds=3": {"ExecuTorch": "refused: RuntimeError: no kernel", "Core ML": "not run: not installed"},
}


def test_methods_by_targets() -> None:
    assert tables.outcomes(ROWS).splitlines() == [
        "| method | ONNX Runtime | Core ML | ExecuTorch |",
        "|---|:---:|:---:|:---:|",
        "| unpatched | right 1e-07 | converts | . |",
        r"| `tome` | wrong 2e-02 | converts\* | right\* 1e-07 |",
        "| `ward` | . | crashed | refused |",
        "| `ward(rounds=3)` | . | not run | refused |",
    ]


def test_what_was_said() -> None:
    assert tables.refusals(ROWS).splitlines() == [
        "| target | says | of |",
        "|---|---|---|",
        "| Core ML | exit code -11 | `ward` |",
        "| Core ML | not installed | `ward(rounds=3)` |",
        "| ExecuTorch | RuntimeError: no kernel | `ward`, `ward(rounds=3)` |",
    ]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("", ""),
        ("\n  One thing. Another\nmore", "One thing"),
        (
            "Check failed\nSummary:\n-- No conversion rule found for operations: aten.x\n",
            "-- No conversion rule found for operations: aten.x",
        ),
    ],
)
def test_first_sentence(said: str, sentence: str) -> None:
    assert targets.first_sentence(said) == sentence


def outcome(*differences: float) -> Any:
    case = SimpleNamespace(expected=[[x] for x in torch.ones(len(differences), 3)])
    found = [[x + d] for (x,), d in zip(case.expected, differences, strict=True)]
    return targets.judged(lambda case: found, case)


def test_one_wrong_batch_is_wrong() -> None:
    assert outcome(0, 0.00001) == "right: 1e-05"
    assert outcome(0.01, 0) == outcome(0, 0.01) == "wrong: 1e-02"


def test_what_is_refused_as_it_is_is_tried_as_a_portable_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(known: str) -> Any:
        def run(case: Any, program: str) -> Any:
            if program != known:
                raise RuntimeError(f"{program} is unknown")
            return case.expected

        return targets.exported(run)(SimpleNamespace(program="plain", expected=[[torch.ones(2)]]))

    monkeypatch.setattr(targets, "portable", lambda program: "simpler")
    assert only("plain") == "right: 0e+00"
    assert only("simpler") == "right: 0e+00, portable"
    assert only("none") == "refused: RuntimeError: simpler is unknown"


def test_who_says_nothing_is_named() -> None:
    def clamp_min(case: Any) -> Any:
        raise AssertionError

    assert targets.judged(clamp_min, None) == "refused: AssertionError: in clamp_min"


def test_results_are_of_all_methods_and_targets() -> None:
    """What runs is right, and what is refused says why."""
    assert [*targets.ROWS] == ["unpatched", *tokenreduce.methods("encoder"), "ward, rounds=3"]
    assert [*DATA["rows"]] == [*targets.ROWS]
    for method, cells in DATA["rows"].items():
        assert [*cells] == [*targets.TARGETS], method
        for found in cells.values():
            word, _, rest = found.partition(": ")
            assert word in ("right", "refused") or found.startswith("converts"), (method, found)
            assert word != "refused" or rest.partition(": ")[2], (method, found)
    assert {*DATA["versions"]} == {*targets.PACKAGES}
