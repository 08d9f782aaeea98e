"""benchmarks/kernels.py, vim_speed.py and variants.py: what they measure at small sizes, and their tables."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from scripts import script

from tokenreduce.ops.native import dispatch

kernels, tables, variants = script("kernels"), script("kernel_tables"), script("variant_tables")


def lines(table: str) -> str:
    """A table as it is written in these tests, without the indentation."""
    return "\n".join(line.strip() for line in table.strip().splitlines())


def test_each_row_times_the_kernel_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    if dispatch.load():
        pytest.skip(dispatch.load())
    called: list[str] = []
    choose = dispatch.choose

    def spy(name: str, *given: Any) -> Any:
        found = choose(name, *given)
        called.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr("tokenreduce.reducers.methods.ward.choose", spy)
    exact, rounds = kernels.ward(1, 16, 1)
    assert exact["kernel"] == "ward_cluster" and rounds["kernel"] == "ward_match"
    assert [name for name, _ in groupby(called)] == ["ward_cluster", "ward_match"]
    assert exact["removed"] == 4 and exact["compiled_ms"] > 0 < exact["reference_ms"]


def test_a_gain_is_of_rounds() -> None:
    times = script("kernels").Times
    found = {"reference": times(((4.0,), (8.0,), (9.0,))), "cpu": times(((1.0,), (4.0,), (3.0,)))}
    row = kernels.row_of(found, kernel="a")
    assert row["speedup_rounds"] == [4, 2, 3] and row["speedup"] == 3 and row["reference_ms"] == 8000


def test_compiled_kernels() -> None:
    row = {"batch": 1, "tokens": 4096, "key_channels": 64, "removed": 13, "reference_ms": 0.2435, "compiled_ms": 0.04}
    rows = [
        row | {"kernel": "bipartite_match + merge_apply", "speedup": 6.18},
        row | {"kernel": "ward_match", "speedup": 2},
    ]
    assert tables.compiled({"rows": rows}) == lines("""
        | kernel | batch | tokens | channels | removed | reference, ms | compiled, ms | gain |
        |---|---:|---:|---:|---:|---:|---:|---:|
        | `bipartite_match` and `merge_apply` | 1 | 4,096 | 64 | 13 | 0.24 | 0.04 | 6.2 x |
        | `ward_match` | 1 | 4,096 | 64 | 13 | 0.24 | 0.04 | 2.0 x |
    """)
    scans = [
        {"kernel": name, "batch": 8, "threads": 2} | row | {"batch": 8, "speedup": 6}
        for name in ("selective_scan", "Vim")
    ]
    assert tables.scanned({"scans": scans}) == lines("""
        | what | batch | threads | loop of PyTorch, ms | compiled, ms | gain |
        |---|---:|---:|---:|---:|---:|
        | `selective_scan` | 8 | 2 | 0.24 | 0.04 | 6.0 x |
        | Vim | 8 | 2 | 0.24 | 0.04 | 6.0 x |
    """)


def test_what_was_not_measured_says_how() -> None:
    assert "benchmarks/kernels.py" in tables.scanned({"rows": []}) and "benchmarks/vim_speed.py" in tables.scan_model(
        None
    )
    assert "benchmarks/launch_counts.py" in tables.launches(None)
    assert all("benchmarks/variants.py" in table for table in variants.tables({}).values())


def test_a_scan_model() -> None:
    runs = [{"speedup": 1.5, "limit_share": 1.1}, {"speedup": 1.44, "limit_share": 1.2}]
    row = {
        "method": "ward",
        "batch_size": 8,
        "unpatched_ms": 380.4,
        "median_ms": 250.6,
        "speedup": 1.47,
        "limit_share": 1.15,
    }
    data = {"model": "Vim-Ti", "threads": 2, "flops": 0.6, "rows": [row | {"runs": runs}]}
    assert tables.scan_model(data) == lines("""
        Vim-Ti, 2 threads, flops=0.6:

        | method | batch | unpatched, ms | patched, ms | speed-up | all runs | time / limit | all runs |
        |---|---:|---:|---:|---:|---:|---:|---:|
        | `ward` | 8 | 380 | 251 | 1.47 x | 1.50, 1.44 | 1.15 | 1.10, 1.20 |
    """)


def test_a_run_of_a_scan_model() -> None:
    vim_speed = script("vim_speed")
    row = vim_speed.run("tome", 1, 64, 1, 1)
    torch.set_num_threads(1)
    assert row["limit_share"] > 0 and row["unpatched_ms"] > 0 and row["flops_share"] == pytest.approx(0.6, abs=0.03)
    runs = [
        {"speedup": s, "limit_share": 1.0, "median_ms": 2.0, "unpatched_ms": 3.0, "other": 1} for s in (1.0, 3.0, 1.2)
    ]
    found = vim_speed.summary(runs)
    assert found["speedup"] == 1.2 and [one["speedup"] for one in found["runs"]] == [1.0, 3.0, 1.2]


def test_launches() -> None:
    rows = [
        {"method": "tome", "kernels": 25.0, "triton": 2.0},
        {"method": "ward(rounds=3)", "kernels": 75.4, "triton": 3.5},
    ]
    assert tables.launches({"rows": rows}) == lines("""
        |  | `tome` | `ward(rounds=3)` |
        |---|---:|---:|
        | without Triton | 25 | 75.4 |
        | with Triton | 2 | 3.5 |
    """)


def test_attention_takes_the_kernel_that_each_library_chooses() -> None:
    rows: list[dict[str, Any]] = []
    for number, shape in enumerate(tables.ATTENTION):
        what = dict(zip(("batch", "tokens", "heads"), shape, strict=True))
        for way, us in (("none", 10), ("mask", 20), ("channels", 30)):
            rows += [what | {"stage": "attention", "way": way, "backend": "flash", "us": 99.0}]
            rows += [what | {"stage": "attention", "way": way, "backend": "default", "us": us + number}]
        rows += [
            what | {"stage": "sweep", "tiles": tiles, "us": us} for tiles, us in ((["none"], 1), ([64], 7.6), ([32], 5))
        ]
    made = tables.attention({"rows": rows}).splitlines()
    assert made[2] == "| 256, 197, 6 | 10 | 20 | 30 | 8 |" and made[-1] == "| 1, 1370, 16 | 13 | 23 | 33 | 8 |"


def test_the_extension_beside_triton() -> None:
    rows = [
        {"stage": "micro", "operator": operator, "shape": [*shape, 13], "choice": choice, "graph_us": us + 0.04}
        for shape in tables.MERGING
        for operator, choice, us in (
            ("match", "triton", 1),
            ("match", "cuda", 2),
            ("merge", "triton", 3),
            ("merge", "cuda", 4),
        )
    ]
    assert tables.extension({"rows": rows}).splitlines()[2:] == [
        "| `bipartite_match`, Triton | 1.0 | 1.0 | 1.0 | 1.0 |",
        "| `bipartite_match`, extension | 2.0 | 2.0 | 2.0 | 2.0 |",
        "| `merge_apply`, Triton | 3.0 | 3.0 | 3.0 | 3.0 |",
        "| `merge_apply`, extension | 4.0 | 4.0 | 4.0 | 4.0 |",
    ]


def test_options_of_a_method() -> None:
    def row(method: str, ratio: float, **options: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"method": method, "options": options}
        for key in ("class_error_of_tome", "token_error_of_tome"):
            for end in ("", "_geometric"):
                made |= {key + end: ratio, f"{key}{end}_interval": [ratio - 0.1, ratio + 0.1]}
        return made

    rows = [
        row("tome", 1),
        row("ward", 0.5),
        row("ward", 0.75, early=0.5),
        row("ats", 2, inherit=False),
        row("ats", 1.5),
    ]
    made = variants.tables({"variants": {"rows": rows}})
    cell = "0.75 (0.65-0.85)"
    assert made["docs/ward.md", "variants"].splitlines()[2:] == [
        "| `ward` | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) |",
        f"| `ward(early=0.5)` | {cell} | {cell} | {cell} | {cell} |",
    ]
    assert [line.split(" | ")[0] for line in made["docs/methods.md", "inherit"].splitlines()[2:]] == [
        "| `ats(inherit=False)`", "| `ats`",
    ]  # fmt: skip
