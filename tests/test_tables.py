"""What the scripts of benchmarks/ make of results: from small ones made up here, with the tables written out."""

from __future__ import annotations

from typing import Any

import pytest
from scripts import script

make_table, sentences, speed = script("make_table"), script("sentences"), script("speed")
kernel_tables = script("kernel_tables")


def lines(table: str) -> str:
    """A table as it is written in these tests, without the indentation."""
    return "\n".join(line.strip() for line in table.strip().splitlines())


# benchmarks/speed.py


def run(share: float | None, speedup: float, milliseconds: float) -> dict[str, Any]:
    return {"limit_share": share, "speedup": speedup, "median_ms": milliseconds}


@pytest.mark.parametrize(
    ("runs", "median"),
    [
        ([run(1.2, 1.1, 5), run(1.0, 1.3, 9), run(1.1, 1.2, 7)], 2),  # by time / limit, which is not by time
        ([run(None, 1.1, 5), run(None, 1.3, 9), run(None, 1.2, 7)], 2),
        ([run(1.2, 1.1, 5), run(1.0, 1.3, 9)], 1),  # of two the better one
        ([run(1.2, 1.1, 5)], 0),
    ],
)
def test_a_row_of_speed_is_its_median_run_and_keeps_all(runs: list[dict[str, Any]], median: int) -> None:
    full = [one | {"method": "tome", "plan_us": 3.0} for one in runs]
    assert speed.summary(full) == runs[median] | {"runs": runs}


SPEED = {
    "rows": [
        {"model": "deit", "target": 1.06, "method": "tome", "budget": "r=13", "batch_size": 1, "tokens_left": 40}
        | {"limit_share": 1.05, "speedup": None, "runs": [run(1.1, 1.4, 6), run(1.05, 1.5, 7), run(1.0, 1.6, 8)]},
        {"model": "deit", "target": 1.12, "method": "mctf", "budget": "flops=0.6", "batch_size": 8, "tokens_left": 36}
        | {"limit_share": 1.1203, "speedup": 1.48, "runs": [run(1.1203, 1.48, 6), run(1.12, 1.5, 7), run(1.13, 1, 8)]},
        {"model": "deit", "target": None, "method": "pool", "budget": "flops=0.6", "batch_size": 8, "tokens_left": 88}
        | {"limit_share": 0.9784, "speedup": 1.618, "runs": [run(0.9784, 1.618, 6)]},
        {"model": "sam", "target": None, "method": "rlt", "budget": "flops=0.6", "batch_size": 8, "tokens_left": 7}
        | {"limit_share": None, "speedup": 0.5, "runs": [run(None, 0.5, 6)]},
    ]
}


def test_speed() -> None:
    assert make_table.speed(SPEED) == lines("""
        | model | batch | method | budget | time / limit | all runs | slowest over fastest | target | meets it | speed-up | tokens left |
        |---|---:|---|---|---:|---:|---:|---:|---|---:|---:|
        | deit | 1 | `tome` | r=13 | 1.050 | 1.100, 1.050, 1.000 | 10.0% | 1.06 | yes | - | 40 |
        | deit | 8 | `mctf` | flops=0.6 | 1.120 | 1.120, 1.120, 1.130 | 0.9% | 1.12 | no | 1.48 | 36 |
        | deit | 8 | `pool` | flops=0.6 | 0.978 |  |  |  |  | 1.62 | 88 |
        | sam | 8 | `rlt` | flops=0.6 | - |  |  |  |  | 0.50 | 7 |
    """)  # noqa: E501


def test_what_is_slower_on_a_gpu_in_eager_mode() -> None:
    rows = [
        {"stage": "models", "choice": "auto", "model": model, "batch": batch, "method": method, "eager_speedup": gain}
        for model, batch, method, gain in (
            ("deit", 1, "tome", 0.5), ("deit", 1, "evit", 0.9), ("deit", 256, "tome", 1.2), ("deit", 256, "topk", 0.94),
            ("dino", 32, "tome", 1.5),
        )
    ]  # fmt: skip
    others: list[dict[str, Any]] = [{"stage": "env"}, rows[0] | {"choice": "reference", "model": "vit"}]
    assert sentences.eager({"rows": rows + others}) == (
        "In eager mode slower than unpatched, whatever the method: deit at batch 1; and deit at batch 256 with `topk`."
    )


def test_speed_in_words() -> None:
    assert sentences.limits(SPEED) == (
        "By the median run 1 of the 2 rows with a target meet it, and these do not: `mctf` on deit (1.1203, not 1.12). "
        "The slowest run of a row is 0.9% to 10.0% slower than its fastest; more than 5 % in 1 of the 2 rows with "
        "several runs."
    )
    assert sentences.limits({"rows": SPEED["rows"][:1]}).startswith(
        "By the median run 1 of the 1 rows with a target meet it. The slowest"
    )


def test_break_even() -> None:
    rows = [
        {
            "width": 192,
            "method": method,
            "tokens": tokens,
            "speedup": gain,
            "speedup_interval": [gain - 0.1, gain + 0.2],
        }
        for method, gains in (("ward", (0.8, 1.3)), ("tome", (0.7, 0.9)))
        for tokens, gain in zip((9, 16), gains, strict=True)
    ]
    summary = [{"width": 192, "method": "ward", "tokens": 16}, {"width": 192, "method": "tome", "tokens": None}]
    assert make_table.break_even({"rows": rows, "break_even": summary}) == lines("""
        | width | method | break-even | 9 tokens | 16 tokens |
        |---:|---|---:|---:|---:|
        | 192 | `ward` | 16 | 0.80 (0.70-1.00) | 1.30 (1.20-1.50) |
        | 192 | `tome` | none | 0.70 (0.60-0.90) | 0.90 (0.80-1.10) |
    """)


# tokenreduce --json


def test_the_commands_own_columns() -> None:
    rows: list[dict[str, Any]] = [
        {"method": "unpatched", "batch_size": 8, "macs": 4.6e9, "flops_share": 1.0, "median_ms": 542.1, "speedup": 1.0},
        {"method": "tome", "batch_size": 8, "macs": 2.7e8, "flops_share": 0.5884, "median_ms": 324.7, "plan_us": 3.0}
        | {"speedup": 1.679, "speedup_interval": [1.59, 1.71], "limit_share": 1.0567, "budget": "r=13"},
    ]
    assert make_table.markdown(rows) == lines("""
        | method | batch | MACs | share | median ms | speed-up | 95 % interval | time / limit |
        |---|---:|---:|---:|---:|---:|---:|---:|
        | unpatched | 8 | 4.60 G | 1.000 | 542.1 | 1.00 x | - | - |
        | tome | 8 | 270.0 M | 0.588 | 324.7 | 1.68 x | 1.59 - 1.71 | 1.057 |
    """)


def test_columns_may_be_hidden() -> None:
    row = {"method": "tome", "budget": "flops=0.6", "class_error": 0.01, "class_error_geometric": 0.002}
    rows = [row | {"token_error": 0.03, "saliency_error": 0.0412}]
    assert make_table.photographs(None) == make_table.NO_PHOTOGRAPHS
    assert make_table.photographs({"rows": rows}) == lines("""
        | method | class error | token error | saliency error |
        |---|---:|---:|---:|
        | tome | 0.0100 | 0.0300 | 0.0412 |
    """)


# dense tasks


def of_dense(method: str, budget: float, change: float, key: str = "ap50", **options: str) -> dict[str, Any]:
    row = {"method": method, "budget": f"flops={budget}", "change": change, key: 0.9 + change}
    return row | {"change_interval": [change - 0.01, change + 0.02], "options": options}


def test_dense() -> None:
    rows: list[dict[str, Any]] = [{"method": "unpatched", "ap50": 0.9}]
    for method, changes in (("tome", (-0.01, -0.03, -0.05)), ("ward", (0.001, -0.02, -0.04))):
        rows += [of_dense(method, share, change) for share, change in zip((0.85, 0.7, 0.55), changes, strict=True)]
    refused = [{"method": "dtop", "budget": f"flops={share}", "refused": "no heads"} for share in (0.85, 0.7, 0.55)]
    rows += [*refused, of_dense("algm", 0.85, -0.001), {"method": "algm", "budget": "flops=0.7", "refused": "too far"}]
    assert make_table.dense({"rows": rows}, "detection") == lines("""
        | method | 85% of the compute | 70% of the compute | 55% of the compute |
        |---|---:|---:|---:|
        | unpatched, AP50 90.00% | | | |
        | `ward` | +0.10 (-0.90 to +2.10) | -2.00 (-3.00 to +0.00) | -4.00 (-5.00 to -2.00) |
        | `tome` | -1.00 (-2.00 to +1.00) | -3.00 (-4.00 to -1.00) | -5.00 (-6.00 to -3.00) |
        | `algm` | -0.10 (-1.10 to +1.90) | not reached |  |
    """)


def restored(**methods: dict[str, float]) -> dict[str, Any]:
    rows = [of_dense(name, 0.7, c, restore=mode) for name, found in methods.items() for mode, c in found.items()]
    return {"rows": [{"method": "unpatched"}, *rows, {"method": "dtop", "budget": "flops=0.7", "refused": "no heads"}]}


def test_restoring() -> None:
    data = restored(
        ward={"copy": -0.01, "delta": -0.005, "kriging": 0.01}, gtp={"copy": -0.02, "soft": -0.03, "freeze": 0.04}
    )
    assert make_table.restoring(data) == lines("""
        | method | copy | soft | freeze | delta | kriging |
        |---|---:|---:|---:|---:|---:|
        | `ward` | -1.00 |  |  | -0.50 | +1.00 |
        | `gtp` | -2.00 | -3.00 | +4.00 |  |  |
    """)


def test_restoring_in_words() -> None:
    segmentation = restored(ward={"copy": -0.01, "delta": -0.005}, tome={"copy": -0.01, "delta": -0.0125})
    tie = {"copy": -0.02001, "freeze": -0.04, "delta": -0.02002}
    detection = restored(ward=tie, tome={"copy": -0.01, "delta": -0.011}, evit={"freeze": -0.01, "delta": -0.009})
    copying = (
        'Of the ways that predict nothing `"delta"` is the best for 1 of 2 methods in segmentation and for 2 of 3 '
        "methods in detection (1 of them in a tie), and never more than 0.25 points worse than the best."
    )
    assert sentences.restoring(segmentation, detection) == copying
    more = restored(ward={"delta": -0.02, "kriging": -0.005}, tome={"delta": -0.01, "kriging": -0.0125})
    assert sentences.restoring(more, restored(evit={"delta": 0.01, "kriging": 0.01})).endswith(
        ' `"kriging"` gains up to 1.50 points on it and loses 0.25 at most; it is better for 1 of 3 pairs of a method '
        "and a task."
    )


def test_pruning_in_words() -> None:
    def data(**changes: tuple[float, float]) -> dict[str, Any]:
        pairs = [(name, *pair) for name, found in changes.items() for pair in zip((0.7, 0.55), found, strict=True)]
        return {"rows": [{"method": "unpatched"}, *(of_dense(*pair) for pair in pairs)]}

    segmentation = data(evit=(-0.01, -0.02), topk=(-0.03, -0.04), ward=(-0.05, -0.06), random=(-0.07, -0.08))
    detection = data(evit=(-0.11, -0.12), topk=(-0.13, -0.14), ward=(-0.15, -0.16), random=(-0.17, -0.18))
    assert sentences.pruning(segmentation, detection, restored(evit={"copy": -0.2, "freeze": -0.3})) == (
        "At 70 % of the compute `evit` and `topk` cost the detector 11.0 and 13.0 points of AP50, where `ward` costs "
        "15.0 and dropping tokens at random 17.0; at 55 % they cost it 12.0 and 14.0, and the segmenter 2.0 and 4.0 "
        "points of mIoU. That is with dropped tokens restored as well as this library can: `evit` with copies, as a "
        "pruned model has them, loses 20.0 points of AP50 at 70 % (on the scenes of the tables below)."
    )


# families, kernels and files


def test_compatibility_and_refusals() -> None:
    passed = {"exact": "pass", "oracle": "does not apply", "compile": "pass", "export": "fail: no", "restore": "pass"}
    rows = [
        {"family": "timm ViT", "methods": {"tome": passed, "gtp": {"exact": "pass"}}},
        {"family": "SAM", "methods": {"tome": {"refused": "windows"}, "gtp": {"refused": "windows"}}},
    ]
    assert make_table.compatibility({"rows": rows}) == lines("""
        | family | `gtp` | `tome` |
        |---|:---:|:---:|
        | timm ViT | e.... | ec!r |
        | SAM | refused | refused |
    """)
    assert make_table.refusals({"rows": rows}) == lines("""
        | family | refused | because |
        |---|---|---|
        | SAM | `tome`, `gtp` | windows |
    """)


def test_size_errors() -> None:
    rows = [{"dtype": "float16", "head_width": 64, "channels": 5.194e-5, "mask": 2.1e-4}]
    assert kernel_tables.size_errors({"rows": rows}) == lines("""
        | type | channels of a head | error, sizes in channels | error, mask |
        |---|---:|---:|---:|
        | float16 | 64 | 5.2e-05 | 2.1e-04 |
    """)


@pytest.mark.parametrize("old", ["", "| old |\n"])
def test_a_table_is_put_between_its_two_comments(old: str) -> None:
    text = f"before\n<!-- a table -->\n{old}<!-- end of a table -->\nafter\n"
    assert make_table.replaced(text, "a", "| new |") == (
        "before\n<!-- a table -->\n| new |\n<!-- end of a table -->\nafter\n"
    )


@pytest.mark.parametrize("text", ["no comments", "<!-- a table -->\n| old |\n", "<!-- end of a table -->"])
def test_a_missing_comment_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="the two comments of a are missing"):
        make_table.replaced(text, "a", "| new |")
