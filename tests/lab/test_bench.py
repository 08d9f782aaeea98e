"""`tokenreduce bench`: its tables, its JSON and its refusals, on a tiny model; never how long something took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from tokenreduce.cli.arguments import literal, parse_options
from tokenreduce.cli.bench import bench
from tokenreduce.errors import TokenReduceError

NUMBERS = [
    *("batch_size", "macs", "flops_share", "tokens_left", "median_ms", "p90_ms", "images_per_second"),
    *("speedup", "limit_share", "peak_memory_mib", "plan_us", "apply_us"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("bench")(bench)
    return CliRunner().invoke(app, [*arguments, "--rounds", "2", "--min-time", "0", "--threads", "1"])


def test_command_prints_tables_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    result = run(
        *("--model", "fashion_vit", "--method", "tome,evit", "--r", "4,8", "--batch-size", "1,2"),
        *("--option", "tome.metric=features", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "cpu, float32, 1 thread, tokenreduce" in words and "attention: flash (CPU)" in words
    data = json.loads(file.read_text())
    assert data["command"] == "bench" and data["environment"]["threads"] == 1
    assert data["settings"]["model"] == "fashion_vit" and data["settings"]["input"] == [1, 28, 28]
    found = [(row["method"], row["budget"], row["batch_size"]) for row in data["rows"]]
    arms = [("unpatched", None)] + [(method, f"r={r}") for method in ("tome", "evit") for r in (4, 8)]
    assert found == [(*arm, size) for size in (1, 2) for arm in arms]
    assert data["rows"][1]["options"] == {"metric": "features"} and data["rows"][3]["options"] == {}
    assert all(math.isfinite(row[key]) for row in data["rows"] for key in NUMBERS)
    slower = [row for row in data["rows"] if round(row["speedup"], 2) < 1]
    assert words.count("is slower than the unpatched model") == len(slower)


def test_an_arm_that_cannot_run_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    choice = ("--model", "fashion_vit", "--method", "random,pool", "--ratio", "0.995", "--batch-size", "1")
    result = run(*choice, "--json", str(file))
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["method"], "refused" in row) for row in rows] == [
        ("unpatched", False),
        ("random", False),
        ("pool", True),
    ]
    assert "pool at ratio=0.995 was not run: " in " ".join(result.output.split())


def test_command_takes_a_timm_model_of_another_size_and_dtype(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    result = run(
        *("--model", "vit_tiny_patch16_224", "--flops", "0.7", "--batch-size", "1", "--image-size", "64"),
        *("--dtype", "bfloat16", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    assert data["settings"]["input"] == [3, 64, 64] and data["settings"]["dtype"] == "bfloat16"
    assert data["rows"][0]["tokens_left"] == 16 and abs(data["rows"][1]["flops_share"] - 0.7) < 0.02


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "tomee", "--flops", "0.6"], "did you mean 'tome'?"),
        ([], "got no budget; give exactly one of --flops, --ratio and --r"),
        (["--flops", "0.6", "--r", "13"], "got --flops 0.6 and --r 13"),
        (["--flops", "half"], "--flops is 'half'; give numbers separated by commas"),
        (["--flops", "1.5"], "flops is 1.5"),
        (["--flops", "0.05"], "reachable minimum"),
        (["--r", "2.5"], "--r is '2.5'; give whole numbers"),
        (["--r", "2", "--batch-size", "1,x"], "--batch-size is '1,x'"),
        (["--r", "2", "--batch-size", "0"], "batch sizes are 1 or more"),
        (["--r", "2", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--r", "2", "--device", "tpu"], "unknown device 'tpu'"),
        (["--r", "2", "--device", "cuda:99"], "is not available"),
        (["--r", "2", "--image-size", "32"], "fashion_vit takes 28"),
        (["--r", "2", "--option", "metric"], "it must be key=value"),
        (["--r", "2", "--option", "metrics=keys"], "unknown option of tome 'metrics'"),
        (["--r", "2", "--option", "evit.metric=keys"], "unknown method in --option 'evit'"),
        (["--r", "2", "--method", "tome,evit", "--option", "metric=keys"], "such as tome.metric=keys"),
        (["--r", "2", "--model", "deit_smal_patch16_224"], "did you mean deit_small_patch16_224"),
        (["--r", "2", "--model", "resnet18"], "holds no backbone"),
        (["--r", "2", "--model", "resnet18", "--image-size", "64"], "timm cannot run resnet18 with --image-size 64"),
        (
            ["--r", "2", "--model", "vit_tiny_patch16_224", "--image-size", "8"],
            "timm cannot run vit_tiny_patch16_224 with",
        ),
    ],
)
def test_command_answers_bad_input_with_one_sentence(arguments: list[str], words: str) -> None:
    result = run("--model", "fashion_vit", *arguments)  # a later --model wins
    assert isinstance(result.exception, TokenReduceError) and words in str(result.exception), result.exception
    assert "\n" not in str(result.exception)


def test_options_read_as_python_values() -> None:
    assert [literal(text) for text in ("true", "None", "3", "0.5", "keys", "[1, 2]")] == [
        True,
        None,
        3,
        0.5,
        "keys",
        [1, 2],
    ]
    chosen = parse_options(["tome.metric=features", "evit.fuse=yes=no"], ["tome", "evit"])
    assert chosen == {"tome": {"metric": "features"}, "evit": {"fuse": "yes=no"}}
