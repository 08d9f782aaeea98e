"""The modes of `compare`: every one runs all models of a comparison, and says which it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fake_graphs import fake_graphs  # noqa: F401
from timed import images, tiny_vit

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.speed import Arm, compare, slower_sentences
from tokenreduce.lab.speed.modes import MODES, check_modes, ready

ARM = Arm("tome", r=3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("fake_graphs")
def test_every_mode_runs_the_model(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda model, **_: model)
    seen = []
    model = patched_lane(tiny_vit().eval(), ARM)
    model.norm.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.inference_mode():
        call = ready(mode, "tome", model, images())
        before = len(seen)
        call()
    assert set(seen) <= {8} and len(seen) - before == (mode != "graph")  # a replay runs no Python


def test_compiling_gives_what_the_model_gives() -> None:
    models = {"unpatched": tiny_vit().eval()}
    models |= {f"r={r}": patched_lane(models["unpatched"], Arm("tome", r=r)) for r in (1, 2)}
    with torch.inference_mode():
        calls = {name: ready("compile", name, model, images()) for name, model in models.items()}
        for name, call in calls.items():
            torch.testing.assert_close(call(), models[name](images()))


def test_rows_of_each_mode_stand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda model, **_: model)
    rows = compare(tiny_vit(), [images(), images()[:1]], [ARM], rounds=2, min_time=0, modes=["eager", "compile"])
    found = [(row["batch_size"], row["mode"], row["method"]) for row in rows]
    assert found == [(b, m, n) for b in (2, 1) for m in ("eager", "compile") for n in ("unpatched", "tome")]
    assert all(row["speedup"] == row["limit_share"] == 1 for row in rows if row["method"] == "unpatched")
    assert rows[1]["macs"] == rows[3]["macs"] and rows[1]["plan_us"] == rows[3]["plan_us"] > 0


def test_one_mode_is_eager_by_default() -> None:
    assert {row["mode"] for row in compare(tiny_vit(), images(), [ARM], rounds=1, min_time=0)} == {"eager"}


@pytest.mark.parametrize(
    ("modes", "error", "words"),
    [
        (["graph"], InvalidValueError, "mode graph is for GPUs, and the input is on cpu; valid there: eager, compile"),
        (["eager", "graf"], InvalidValueError, "unknown mode 'graf'; .* did you mean 'graph'"),
        ([], InvalidTypeError, r"modes is \[\]; give a list of eager, graph, compile"),
        ("eager", InvalidTypeError, "modes is 'eager'; give a list"),
    ],
)
def test_other_modes_are_refused(modes, error, words) -> None:
    with pytest.raises(error, match=words):
        compare(tiny_vit(), images(), [ARM], modes=modes)


def test_graphs_are_for_gpus() -> None:
    check_modes(list(MODES), torch.device("cuda"))


def test_a_model_that_a_mode_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, **_: object) -> None:
        raise RuntimeError("operation not permitted\nand many lines more")

    monkeypatch.setattr("torch.compile", fail)
    with pytest.raises(InvalidValueError, match=r"^tome at r=3 cannot run in mode compile: operation not permitted$"):
        ready("compile", "tome at r=3", tiny_vit(), images())


def test_sentences_name_the_mode() -> None:
    row = {"method": "tome", "budget": "r=3", "batch_size": 1, "speedup": 0.5}
    assert "at batch 1 (0.50 x)" in slower_sentences([row | {"mode": "eager"}])[0]
    assert "at batch 1, mode graph (0.50 x)" in slower_sentences([row | {"mode": "graph"}])[0]


def test_the_command_takes_modes_and_short_types(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda model, **_: model)
    file = tmp_path / "rows.json"
    words = run(
        *("bench", "--model", "fashion_vit", "--r", "4", "--batch-size", "1", "--rounds", "1", "--min-time", "0"),
        *("--mode", "eager,compile", "--dtype", "bf16", "--json", file),
    )
    data = json.loads(file.read_text())
    assert data["settings"]["modes"] == ["eager", "compile"] and data["settings"]["dtype"] == "bfloat16"
    assert [row["mode"] for row in data["rows"]] == ["eager", "eager", "compile", "compile"]
    assert "│ compile" in words or "compile" in words.split()
    with pytest.raises(InvalidValueError, match="mode graph is for GPUs"):
        run("bench", "--model", "fashion_vit", "--r", "4", "--mode", "graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_all_modes_on_a_gpu() -> None:
    rows = compare(tiny_vit(), images().to("cuda"), [ARM], rounds=2, min_time=0, modes=list(MODES))
    assert [row["mode"] for row in rows] == ["eager", "eager", "graph", "graph", "compile", "compile"]
    assert all(row["median_ms"] > 0 and row["limit_share"] > 0 for row in rows)
