"""`benchmarks/gpu.py`: rows are whole at any time, failures are rows, what is there is not measured again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import script

import tokenreduce
from tokenreduce.patching.finding import reduction_of


@pytest.fixture
def session(tmp_path: Path) -> Any:
    made = script("gpu_stages.session").Session(tmp_path / "rows.json", True, time.time() + 60)
    made.begin("micro", 60)
    return made


def stored(session: Any) -> dict[str, Any]:
    return json.loads(session.file.read_text())


def test_every_row_is_in_the_file_at_once(session: Any) -> None:
    assert stored(session) == {"rows": []}
    session.measure(lambda: {"us": 1.23456789, "why": [0.1]}, operator="match", shape=[1, 2])
    assert stored(session)["rows"][0].items() >= {"stage": "micro", "operator": "match", "us": 1.2346}.items()
    session.facts = {"gpu": "none"}
    session.write()
    session.measure(lambda: {"us": 2.0}, operator="merge", shape=[1, 2])
    assert stored(session)["gpu"] == "none" and [row["us"] for row in stored(session)["rows"]] == [1.2346, 2.0]


def test_a_failure_is_a_row_and_the_next_is_measured(session: Any) -> None:
    session.measure(lambda: {"us": 1 / 0}, operator="match")
    session.measure(lambda: {"us": 1.0}, operator="merge")
    failed, measured = stored(session)["rows"]
    assert failed["failed"] == "ZeroDivisionError: division by zero" and measured["us"] == 1


def test_another_process_goes_on_behind_what_is_there(session: Any) -> None:
    session.measure(lambda: {"us": 1.0}, operator="match", shape=[3])
    again = type(session)(session.file, True, session.ends)
    again.begin("micro", 60)
    again.measure(lambda: pytest.fail("measured again"), operator="match", shape=[3])
    again.measure(lambda: {"us": 2.0}, operator="match", shape=[4])
    assert [row["us"] for row in stored(again)["rows"]] == [1, 2]


def test_a_stage_that_is_late_says_where_it_was_cut(session: Any) -> None:
    session.begin("micro", -1)
    for name in ("match", "merge"):
        session.measure(lambda: pytest.fail("measured late"), operator=name)
    (row,) = stored(session)["rows"]
    assert row["cut"] and "match" in row["before"]


def test_stages_are_chosen_and_the_rest_still_runs(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, ran = script("gpu"), []
    stages = {"env": (lambda s: ran.append("env"), 1.0), "kernels": (lambda s: 1 / 0, 1.0)}
    stages |= {"models": (lambda s: ran.append("models"), 1.0), "trace": (lambda s: ran.append("trace"), 1.0)}
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(gpu.faulthandler, "dump_traceback_later", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(session.file.parent), "--cpu", "--only", "models"])
    gpu.main()
    assert ran == ["env", "models"]
    assert [row["stage"] for row in stored(session)["rows"] if "failed" in row] == ["kernels"]


def test_without_cuda_nothing_is_compiled_for_it(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, ran = script("gpu"), []
    stages = {name: (lambda s, name=name: ran.append((name, s.left_out)), 1.0) for name in ("env", "kernels", "models")}
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(gpu.faulthandler, "dump_traceback_later", lambda *args, **kwargs: None)
    arguments = ["gpu.py", "--out", str(session.file.parent), "--cpu", "--only", "models", "--no-cuda"]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu.main()
    assert ran == [("env", ("cuda",)), ("models", ("cuda",))]


def test_scans_and_their_gradients_are_compared(session: Any) -> None:
    correct, scans = script("gpu_stages.correct"), script("gpu_stages.scans").scans
    session.begin("correct", 60)
    calls = scans(session.device, torch.float64, 2, 9, 5)
    correct.compare(session, ["auto"], calls, (2, 9, 5), torch.float64, False)
    rows = stored(session)["rows"]
    assert [row["operator"] for row in rows] == [
        "scan", "scan, gradients", "scan in an order", "scan in an order, gradients",
    ]  # fmt: skip
    for row in rows:
        assert row["error"] < 1e-12 and row["repeats"] and row["finite"] and row["same"] is None
    wrong = {"scan": iter([[torch.ones(3)], [torch.zeros(3)], [torch.zeros(3)]]).__next__}
    correct.compare(session, ["auto"], wrong, (0,), torch.float64, False)
    assert stored(session)["rows"][-1]["error"] == 1


def test_rounds_have_the_counts_of_ward(session: Any) -> None:
    cases = script("gpu_stages.cases")
    session.tiny = False
    ward, rounds = (cases.arm_of(session, cases.CASES[0], method) for method in ("ward", cases.ROUNDS))
    assert rounds.method == "ward" and rounds.options == {"rounds": 3} and not ward.options
    assert str(rounds.arguments["schedule"]) == str(ward.arguments["schedule"])


def test_a_lost_gpu_starts_a_process_that_goes_on(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, started = script("gpu"), []
    monkeypatch.delenv(gpu.RESTARTS, raising=False)
    monkeypatch.setattr(gpu.os, "execv", lambda program, command: started.append(command))
    gpu.start_anew(session, ["models", "trace"])
    assert started[0][2:6] == ["--out", str(session.file.parent), "--only", "models,trace"]
    assert gpu.os.environ[gpu.RESTARTS] == "1"


@pytest.mark.parametrize("method", ["tome", "ward", "evit", "pitome", "topk"])
def test_stored_counts_are_those_of_a_patch(method: str) -> None:
    """Where this fails: `python benchmarks/gpu.py --resolve`, and what was measured before is of other counts."""
    import timm

    cases = script("gpu_stages.cases")
    counts = json.loads(cases.COUNTS.read_text())
    assert counts.keys() == {case.model for case in cases.CASES} and all(method in found for found in counts.values())
    with torch.device("meta"):
        net = timm.create_model(cases.DEIT).eval()
    reduction = reduction_of(tokenreduce.patch(net, method, flops=cases.FLOPS))
    assert counts[cases.DEIT][method] == list(reduction.counts(196))
    assert reduction.share(196, reduction.counts(196)) == pytest.approx(cases.FLOPS, abs=0.02)


def test_runs_are_joined_and_the_last_row_counts() -> None:
    collect = script("gpu_collect")
    model = {"stage": "models", "model": "deit", "side": 224, "batch": 1, "method": "ward", "choice": "auto"}
    first = {"gpu": "A", "torch": "2", "tokenreduce": "0", "rows": [model | {"failed": "x"}, {"stage": "env"}]}
    found = {"width": 384, "tokens": 196, "dtype": "float16", "graph_speedup": 1.5, "eager_speedup": 1.1}
    second = first | {
        "rows": [model | found, model | {"method": "tome", "failed": "y"}, {"stage": "micro", "cut": True}]
    }
    made = collect.joined([first, second])
    assert [row.get("method", row["stage"]) for row in made["rows"]] == ["ward", "env", "tome"]
    advised = {key: value for key, value in found.items() if key != "dtype"}
    assert collect.advised(made)["rows"] == [{"model": "deit", "method": "ward", "batch_size": 1} | advised]
    with pytest.raises(ValueError, match="2 cards"):
        collect.joined([first, second | {"gpu": "B"}])


def test_the_table_names_the_card_or_says_that_there_is_none() -> None:
    table = script("make_table").gpu
    row = {"stage": "models", "model": "deit", "side": 224, "batch": 1, "method": "ward", "choice": "auto"}
    row |= {"graph_limit_share": 1.0412, "graph_speedup": 1.5, "graph_unpatched_us": 350.0}
    made = table({"gpu": "Some GPU", "torch": "2.11", "triton": None, "rows": [row, row | {"choice": "reference"}]})
    assert made.splitlines()[0] == "Some GPU, torch 2.11, half precision, random weights:"
    assert made.splitlines()[-1] == "| deit | 224 | 1 | `ward` | 1.041 | - | 1.50 | - | 0.35 |"
    assert made.count("`ward`") == 1 and "never measured" in table(None)
    older = table({"gpu": "Some GPU", "rows": [row | {"variant": "2 warps"}]})
    assert older.splitlines()[-1].startswith("| deit | 224 | 1 | `ward`, 2 warps | 1.041 |")
