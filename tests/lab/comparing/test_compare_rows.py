"""`compare_methods`: rows equal those of `eval`, are measured once, and belong to their settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tokenreduce import Schedule, patch, save_patch
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing import Speed, compare_methods, measuring, reading, running, write_report
from tokenreduce.lab.comparing.choosing import answers, best_of
from tokenreduce.lab.comparing.pictures import LARGEST, shrink
from tokenreduce.lab.quality.evaluation import classification
from tokenreduce.lab.quality.loading import Head, Setup
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.fashion_vit import fashion_vit

SMALL = Setup(limit=12, batch_size=5)


def quiet(fraction: float, what: str) -> None:
    pass


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every forward of the unpatched model whose features are looked at."""
    seen: list[int] = []
    look = measuring.KeptLane.take

    def take(self: Any, batch: Any, reference: Any) -> Any:
        before = len(self._seen)
        found = look(self, batch, reference)
        seen.extend([len(batch[0])] * (len(self._seen) - before))
        return found

    monkeypatch.setattr(measuring.KeptLane, "take", take)
    return seen


@pytest.mark.parametrize("head", [Head(), Head("none"), Head("knn", gallery_size=40)], ids=lambda head: head.kind)
def test_rows_are_those_of_eval_and_the_unpatched_model_runs_once(
    tmp_path: Path, head: Head, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if head.kind == "knn":
        monkeypatch.setattr("tokenreduce.lab.data.folders.fashion_mnist.find", lambda where: shipped())
        monkeypatch.setattr("tokenreduce.lab.data.fashion_mnist.STEMS", {"train": "t10k", "test": "t10k"})
    found = compare_methods(["tome", "evit"], [0.8, 0.6], out=tmp_path, setup=SMALL, head=head, speed=None)
    arms = [Arm(name, flops=share) for name in ("tome", "evit") for share in (0.8, 0.6)]
    expected = classification(arms, SMALL, head).measure(quiet)
    assert found.rows == expected
    assert forwards == [5, 5, 2]
    assert found.settings["images"] == 12 and found.settings["speed"] is None


def shipped() -> Path:
    from tokenreduce.lab.data.fashion_mnist import SUBSET

    return SUBSET


def test_adaptive_methods_are_counted_as_in_eval(tmp_path: Path) -> None:
    """Their compute is a share of what the unpatched lane counted, which does not run again."""
    found = compare_methods(["ats"], [0.7], out=tmp_path, setup=SMALL, speed=None)
    assert found.rows[1]["flops_share"] == pytest.approx(0.7, abs=0.02)


def test_many_images_stream_and_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"setup": SMALL, "speed": None}
    kept = compare_methods(["tome"], [0.6], out=tmp_path / "kept", **run)  # type: ignore[arg-type]
    monkeypatch.setattr(reading, "MEMORY", 1)
    streamed = compare_methods(["tome"], [0.6], out=tmp_path / "streamed", **run)  # type: ignore[arg-type]
    assert kept.rows == streamed.rows and len(streamed.samples) == 3


def test_speed_is_interleaved_with_the_unpatched_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def timed(model: nn.Module, batch: Tensor, arms: list[Arm], rounds: int, min_time: float) -> list[Row]:
        asked.append((len(batch), [str(arm) for arm in arms], rounds, min_time))
        return [dict.fromkeys(measuring.TIMED, 1.0), dict.fromkeys(measuring.TIMED, 2.0)]

    monkeypatch.setattr(measuring, "compare", timed)
    found = compare_methods(["tome"], [0.8, 0.6], out=tmp_path, setup=SMALL, speed=Speed(20, 3, 0.5))
    assert asked == [(20, ["tome at flops=0.8"], 3, 0.5), (20, ["tome at flops=0.6"], 3, 0.5)]
    assert [row["speedup"] for row in found.rows] == [1.0, 2.0, 2.0]


def test_finished_rows_are_not_measured_again_and_others_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = running.measure_row

    def noting(bench: measuring.Bench, arm: Arm, tell: Any) -> tuple[Row, Row]:
        measured.append(str(arm))
        return measure(bench, arm, tell)

    monkeypatch.setattr(running, "measure_row", noting)
    run: Callable[..., Any] = lambda names, shares, **more: compare_methods(  # noqa: E731
        names, shares, out=tmp_path, setup=SMALL, speed=None, **more
    )
    first = run(["tome"], [0.8])
    assert run(["tome"], [0.8]).rows == first.rows and measured == ["tome at flops=0.8"]
    more = run(["evit", "tome"], [0.8, 0.6])
    assert measured[1:] == ["evit at flops=0.8", "evit at flops=0.6", "tome at flops=0.6"]
    assert first.rows[1] in more.rows
    run(["tome"], [0.8], options={"tome": {"metric": "features"}})
    assert len(measured) == 5  # other options are another row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setup": Setup(limit=11, batch_size=5)}, "limit 12, now 11"),
        ({"head": Head("none")}, "head 'trained', now 'none'"),
        ({"speed": Speed()}, "speed None, now"),
    ],
)
def test_rows_of_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    first: dict[str, Any] = {"setup": SMALL, "speed": None}
    compare_methods(["tome"], [0.8], out=tmp_path, **first)
    before = (tmp_path / "rows.jsonl").read_text()
    with pytest.raises(InvalidValueError, match=f"holds rows of other settings .*{message}.*name another folder"):
        compare_methods(["tome"], [0.8], out=tmp_path, **first | change)
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_what_does_not_fit_has_a_reason_and_all_means_all(tmp_path: Path) -> None:
    found = compare_methods(["tome", "dtop"], [0.8, 0.0001], out=tmp_path, setup=SMALL, speed=None)
    refused = {(row["method"], row["budget"]): row["refused"] for row in found.rows if "refused" in row}
    assert refused.keys() == {("tome", "flops=0.0001"), ("dtop", "any budget")}
    assert "auxiliary" in refused["dtop", "any budget"]
    assert [row["method"] for row in found.rows[:2]] == ["unpatched", "tome"] and len(found.arms) == 1


def test_all_are_the_methods_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenreduce import compatible

    monkeypatch.setattr(running, "measure_row", lambda bench, arm, tell: ({}, {"method": arm.method, "refused": "x"}))
    found = compare_methods(None, [0.6], out=tmp_path, setup=SMALL, speed=None)
    fitting = compatible(fashion_vit())
    tried = [row["method"] for row in found.rows if row["refused"] == "x"]
    assert set(tried) == set(fitting) and {"ward", "tome", "evit"} <= set(tried)
    assert {row["method"] for row in found.rows} - set(tried) <= fitting.refused.keys()


def test_a_calibrated_schedule_is_a_row_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    save_patch(patch(fashion_vit(), "tome", schedule=Schedule.keep({3: 0.5})), file)
    found = compare_methods(["evit"], [0.8], out=tmp_path / "out", setup=SMALL, speed=None, schedules=[file])
    row = found.rows[1]
    assert (row["method"], row["budget"], row["tokens_left"]) == ("tome", f"schedule={file}", 98)
    assert (
        classification([Arm("tome", schedule=Schedule.keep({3: 0.5}))], SMALL).measure(quiet)[1]["token_error"]
        == (row["token_error"])
    )
    save_patch(patch(fashion_vit(), "tome", schedule=Schedule.keep({3: 0.6})), file)
    again = compare_methods(["evit"], [0.8], out=tmp_path / "out", setup=SMALL, speed=None, schedules=[file])
    assert again.rows[1]["tokens_left"] == int(196 * 0.6)  # what the file says counts, not its name


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "name": ((["tomme"], [0.8]), {}, "did you mean 'tome'"),
    "one name": (("tome", [0.8]), {}, r"give a list such as"),
    "no budget": ((["tome"], []), {}, "budgets is empty"),
    "share": ((["tome"], [1.5]), {}, r"in \(0, 1\]"),
    "twice": ((["tome"], [0.8, 0.8]), {}, "name each once"),
    "option": ((["tome"], [0.8]), {"options": {"tome": {"colour": 1}}}, "unknown option of tome"),
    "misfit": ((["dtop"], [0.8]), {}, "no method fits this model: it needs auxiliary.*those that do: .*tome"),
    "file": ((["tome"], [0.8]), {"schedules": ["missing.json"]}, "missing.json cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(tmp_path: Path, case: str) -> None:
    given, named, message = WRONG[case]
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        compare_methods(*given, out=tmp_path, setup=SMALL, speed=None, **named)
    assert not (tmp_path / "rows.jsonl").exists()


def test_files_say_the_same_and_keep_to_the_contract(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    found = compare_methods(["tome", "dtop"], [0.8], out=tmp_path, setup=SMALL, speed=Speed(2, 1, 0.0))
    (tmp_path / ".rows.csv.0.writing").write_text("of a run that was killed")
    files = {path.name for path in write_report(found, tmp_path, "tokenreduce compare --x")}
    pictures = {"errors.png", "accuracy.png", "speed.png", "tokens.png", "layers.png"}
    assert files == {"report.html", "rows.csv", "rows.json", *pictures} and not list(tmp_path.glob("*.writing"))
    data = json.loads((tmp_path / "rows.json").read_text())
    assert data.keys() == {"command", "settings", "environment", "rows"} and data["rows"] == found.rows
    contract = {"method", "flops_share", "macs", "tokens_left", "top1", "class_error", "token_error"}
    contract |= {"images_per_second", "speedup", "limit_share", "peak_memory_mib"}
    assert contract <= data["rows"][1].keys() and data["environment"]["torch"] == torch.__version__
    with (tmp_path / "rows.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == [row["method"] for row in found.rows]
    assert float(table[1]["token_error"]) == found.rows[1]["token_error"] and table[0]["refused"] == ""
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_nothing_measured_is_said_and_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    found = compare_methods(["tome"], [0.0001], out=tmp_path, setup=SMALL, speed=None)
    with pytest.raises(InvalidValueError, match="nothing could be measured"):
        write_report(found, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_best_row_loses_least_within_the_budget() -> None:
    def row(method: str, share: float, error: float, **more: Any) -> Row:
        return {"method": method, "budget": f"flops={share}", "flops_share": share, "class_error": error, **more} | {
            "token_error": error
        }

    slow = {"speedup": 0.9, "speedup_interval": [0.8, 0.95]}
    rows: list[Row] = [{"method": "unpatched", "flops_share": 1.0, **slow}]
    rows += [row("a", 0.8, 0.01, **slow), row("b", 0.6, 0.02, **slow), row("c", 0.604, 0.015, **slow)]
    rows.append({"method": "d", "budget": "any budget", "refused": "why"})
    assert [best_of(rows, share)["method"] for share in (0.8, 0.6)] == ["a", "c"]  # type: ignore[index]
    assert best_of(rows, 0.5) is None
    said = answers(rows, [0.8, 0.6, 0.5])
    assert len(said) == 3 and said[0].startswith("At 80% of the multiply-adds a loses least: class error 0.01")
    assert "not surely faster" in said[1] and "reduction does not pay" in said[2]
    fast = [one | ({"speedup": 1.5, "speedup_interval": [1.4, 1.6]} if "speedup" in one else {}) for one in rows]
    assert len(answers(fast, [0.8, 0.6])) == 2 and "1.50 times as fast." in answers(fast, [0.8])[0]


def test_pictures_for_the_page_are_made_small(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (700, 1800, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    shrink(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size <= LARGEST
    with Image.open(tmp_path / "noise.png") as small:
        assert 400 <= small.width < 1800 and abs(small.width / small.height - 18 / 7) < 0.02
