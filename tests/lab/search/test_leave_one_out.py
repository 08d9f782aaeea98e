"""benchmarks/leave_one_out.py: folds that share what is measured find what `calibrate` finds, and nothing leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import script
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tokenreduce import calibrate
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.search.calibrating import choose_variants
from tokenreduce.lab.search.trials import Candidate, Trials

leave_one_out, calibrate_tables = script("leave_one_out"), script("calibrate_tables")
KINDS = ("class_error", "token_error")
SQUARES = 26  # of 13 photographs: with one left out 24, in whole and in half batches


def trials_of(images: Tensor, journal: Journal) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7).eval()
    variants = choose_variants(model, ["tome", "dpc_knn"])
    return model, variants, leave_one_out.Remembered(model, variants[0], images, journal)


def silent(fraction: float, what: str) -> None:
    pass


@pytest.fixture
def images() -> Tensor:
    return torch.randn(SQUARES, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_fold_finds_what_calibrate_finds_and_measures_it_on_the_source_left_out(images: Tensor) -> None:
    model, variants, trials = trials_of(images, Journal())
    sources = [number % 13 for number in range(SQUARES)]
    for left_out, seed in ((3, 3), (12, 4)):
        row = leave_one_out.fold(trials, variants, sources, left_out, seed, silent)
        others = [image for image in range(SQUARES) if sources[image] != left_out]
        labels = [sources[image] for image in others]
        found = calibrate(model, images[others], flops=0.6, methods=["tome", "dpc_knn"], sources=labels, seed=seed)
        assert row["best_candidate"] == found.figures["best_candidate"] and row["verdict"] == found.verdict
        assert found.evidence is not None
        assert row["checked"]["overall"]["ratio"] == pytest.approx(found.evidence.overall.mean, rel=1e-3)
        own = [image for image in range(SQUARES) if sources[image] == left_out]
        slow = Trials(model, variants[0], images[own], [[0, 1]], Journal())
        best = slow.counted(trials_variant(found), tuple(found.figures["best_candidate"]["counts"]))
        for name, one in {"default": slow.own(variants[0], 0.6), "candidate": best}.items():
            assert row[name] == pytest.approx(slow.errors(one, [0]).mean(0).tolist(), rel=1e-4)
        assert row["chosen"] == row["candidate" if found.improved else "default"]


def trials_variant(found: Any) -> Any:
    best = found.figures["best_candidate"]
    return leave_one_out.Variant(best["method"], best["options"])


def test_the_source_left_out_is_not_looked_at_before_the_choice(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, variants, trials = trials_of(images, Journal())
    seen: set[int] = set()
    errors = Trials.errors

    def watch(self: Trials, candidate: Candidate, batches: Any) -> Tensor:
        seen.update(batches)
        return errors(self, candidate, batches)

    monkeypatch.setattr(Trials, "errors", watch)
    others = [image for image in range(SQUARES) if image % 13 != 5]
    leave_one_out.calibrated(trials, variants, others, [image % 13 for image in others], 0, silent)
    assert seen == set(others)


def test_an_image_alone_has_the_errors_that_it_has_in_a_batch(images: Tensor) -> None:
    _, variants, trials = trials_of(images, Journal())
    candidates = [trials.own(variant, 0.6) for variant in variants]
    assert leave_one_out.apart(trials, candidates, images) < 1e-4


def test_a_second_run_measures_nothing_again(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [number % 13 for number in range(SQUARES)]
    rows = []
    for run in range(2):
        _, variants, trials = trials_of(images, Journal(tmp_path / "trials.jsonl"))
        if run:
            monkeypatch.setattr(trials, "_measure", None)
        rows.append(leave_one_out.fold(trials, variants, sources, 1, 1, silent))
    assert rows[0] == rows[1]


def row(source: str, chosen: list[float], default: list[float]) -> dict[str, Any]:
    return {"source": source, "chosen": chosen, "default": default, "candidate": chosen}


def test_a_summary_by_hand() -> None:
    rows = [row("a", [0.1, 0.4], [0.2, 0.2]), row("b", [0.3, 0.1], [0.3, 0.1]), row("a", [0.2, 0.1], [0.1, 0.1])]
    found = leave_one_out.summary(rows, KINDS, "chosen")
    assert (found["folds"], found["sources"]) == (3, 2)
    first, second = found["class_error"], found["token_error"]
    assert first["of_means"] == pytest.approx(1) and first["geometric"] == pytest.approx(1)
    assert second["of_means"] == pytest.approx(1.5) and second["geometric"] == pytest.approx(2 ** (1 / 3), rel=1e-4)
    assert (first["larger"], first["smaller"]) == (1, 1) and (second["larger"], second["smaller"]) == (1, 0)
    assert first["largest"] == pytest.approx(2, rel=1e-4) and first["smallest"] == pytest.approx(0.5, rel=1e-4)
    low, high = second["of_means_interval"]  # of b alone 1, of a alone 5 / 3
    assert low == pytest.approx(1) and high == pytest.approx(5 / 3)


def test_a_result_that_is_the_default_changes_nothing() -> None:
    same = [row(name, [0.1, 0.2], [0.1, 0.2]) for name in "abc"]
    found = leave_one_out.summary(same, KINDS, "chosen")["token_error"]
    assert found["of_means"] == 1 and found["of_means_interval"] == (1, 1)
    assert found["larger"] == found["smaller"] == 0


def results() -> dict[str, Any]:
    """A results file of two kinds of error; JSON makes lists of intervals."""
    rows = [row("a", [0.1, 0.4], [0.2, 0.2]), row("b", [0.3, 0.1], [0.3, 0.1])]
    data = {"flops": 0.6, "images": 2, "seeds": 1, "photographs": ["a", "b", "c"], "kinds": list(KINDS), "rows": rows}
    data |= {name: leave_one_out.summary(rows, KINDS, name) for name in ("chosen", "candidate")}
    return json.loads(json.dumps(data | {"folds_left": 1, "improved": 1, "with_candidate": 2}))


def test_the_table_says_what_is_worse_and_what_is_left() -> None:
    lines = calibrate_tables.left_out(results()).splitlines()
    assert len(lines) == 6
    assert lines[3] == "| what `calibrate` gives | token | 1.667 (1.000-2.000) | 1.414 (1.000-2.000) | 0 | 1 | 2.00 |"
    words = calibrate_tables.left_out_in_words(results())
    assert "**1 folds are still to be measured.**" in words and "in 1 the check let it through" in words
    assert "still to be" not in calibrate_tables.left_out_in_words(results() | {"folds_left": 0})


def test_the_table_of_seeds_names_options_that_are_not_the_usual_ones() -> None:
    errors = leave_one_out.summary([row("a", [0.1, 0.4], [0.2, 0.2])], KINDS, "chosen")
    checked = {"overall": {"ratio": 0.694, "interval90": [0.5, 0.91]}}
    usual = {"early": 1.0, "nearness": 0.2}
    rows = [
        {"seed": 0, "method": "ward", "options": usual | {"early": 0}, "improved": True, "checked": checked},
        {"seed": 1, "method": "ward", "options": {"nearness": 0.2}, "improved": False, "checked": None},
    ]
    data = {"kinds": list(KINDS), "rows": [one | {"test": errors} for one in rows]}
    lines = calibrate_tables.fashion(data).splitlines()
    same = "0.500 (0.500-0.500) | 0.500 (0.500-0.500) | 2.000 (2.000-2.000) | 2.000 (2.000-2.000) |"
    assert lines[2] == f"| 0 | `ward(early=0)`, another schedule | 0.69 (0.50-0.91) | {same}"
    assert lines[3] == f"| 1 | `ward`, the default | - | {same}"
