"""`advise` on a GPU: from rows of one that were measured, or a sentence that none were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenreduce.lab.speed import gpu_rows
from tokenreduce.lab.speed.advising_gpu import answer_on_gpu
from tokenreduce.lab.speed.gpu_rows import nearest_row, shipped_rows

DEIT = {"model": "deit_small", "width": 384, "tokens": 196}
ROWS: list[dict[str, Any]] = [
    DEIT | {"batch_size": 1, "method": "ward", "graph_speedup": 1.01, "eager_speedup": 0.2},
    DEIT | {"batch_size": 1, "method": "tome", "graph_speedup": 0.90, "eager_speedup": 0.1},
    DEIT | {"batch_size": 32, "method": "ward", "graph_speedup": 1.04, "eager_speedup": 0.9},
    DEIT | {"batch_size": 32, "method": "tome", "graph_speedup": 1.40, "eager_speedup": None},
    DEIT | {"batch_size": 256, "method": "ward", "graph_speedup": 1.55, "eager_speedup": 1.5},
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"gpu": "Some GPU", "rows": ROWS}))
    monkeypatch.setattr(gpu_rows, "SHIPPED", file)


def answer(batch: int, width: int = 384, tokens: int = 196, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    return answer_on_gpu(("ward", "tome"), width, tokens, batch, dtype, "cuda:0")


def test_where_launches_decide_nothing_is_to_be_gained(measured: None) -> None:
    found = answer(1)
    assert (found["pays"], found["method"], found["expected_speedup"]) == (False, "ward", 1.01)
    assert "launching kernels takes most of the time" in found["reason"] and "Some GPU" in found["reason"]


def test_the_first_method_that_pays(measured: None) -> None:
    assert (answer(32)["method"], answer(32)["expected_speedup"]) == ("tome", 1.40)
    assert "without" not in answer(32)["reason"] and "tokenreduce.graph(model, input)" in answer(32)["reason"]
    assert (answer(256)["method"], answer(256)["pays"]) == ("ward", True)
    assert "1.55 x with ward as a CUDA graph and 1.50 x without" in answer(256)["reason"]


@pytest.mark.parametrize(
    ("batch", "width", "tokens"), [(20, 384, 196), (64, 384, 196), (32, 768, 196), (32, 384, 98), (32, 200, 390)]
)
def test_near_cases(measured: None, batch: int, width: int, tokens: int) -> None:
    row = nearest_row("tome", width, tokens, batch)
    assert row is not None and row.batch_size == 32


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"batch": 600}, "no model near width 384, 196 image tokens and batch 600 was measured on a GPU"),
        ({"batch": 32, "width": 769}, "no model near width 769"),
        ({"batch": 32, "tokens": 97}, "97 image tokens"),
        ({"batch": 32, "dtype": torch.float32}, "only half precision was measured, and the input is float32"),
    ],
)
def test_what_was_not_measured(measured: None, case: dict[str, Any], words: str) -> None:
    found = answer(**case)
    assert found["pays"] is found["expected_speedup"] is found["break_even_tokens"] is None
    assert words in found["reason"] and found["method"] == "ward"


def test_before_any_measurement_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_rows, "SHIPPED", tmp_path / "gpu.json")
    found = answer(1)
    assert shipped_rows() == [] and found["pays"] is None
    assert found["reason"] == "GPU speed was never measured for this version, and the input is on cuda:0"


def test_what_ships_has_the_methods_that_are_advised() -> None:
    """Where `ward` was slower than no reduction, the other is."""
    large, small = answer(32, width=1024), answer(32)
    assert (large["method"], large["pays"], small["method"], small["pays"]) == ("ward", True, "tome", True)
