"""`calibrate`: what it chooses, what it keeps, and that it goes on after it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenreduce import Schedule, calibrate, patch, reduced, report, unpatch
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import Journal, digest
from tokenreduce.lab.search import trials
from tokenreduce.lab.search.calibration import explain
from tokenreduce.lab.search.curves import Power
from tokenreduce.lab.search.gate import compare
from tokenreduce.lab.search.sensitivities import draw_sensitivities, sensitivities
from tokenreduce.lab.search.trials import Candidate, Trials, Variant
from tokenreduce.patching.finding import reduction_of
from tokenreduce.reducers.registry import lookup

Counts = tuple[int, ...]


def small_vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 7}
    return VisionTransformer(**settings | changes).eval()


def some_images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Candidate], float]], list[Candidate]]:
    """Makes errors up: noise around what a function says of a candidate; gives the candidates that were asked for."""
    asked: list[Candidate] = []

    def plant(level: Callable[[Candidate], float]) -> list[Candidate]:
        def errors(self: Trials, candidate: Candidate, batches: list[int]) -> Tensor:
            asked.append(candidate)
            g = torch.Generator().manual_seed(crc32(f"{candidate.variant} {candidate.counts}".encode()))
            noise = (torch.randn(64, 2, generator=g, dtype=torch.float64) * 0.3).exp()
            images = [image for batch in batches for image in self.numbers[batch]]
            return noise[images] * 0.01 * level(candidate)

        made = Trials.__init__

        def init(self: Trials, model: nn.Module, default: Variant, images: Tensor, batches: Any, *rest: Any) -> None:
            self.numbers = batches  # type: ignore[attr-defined]
            made(self, model, default, images, batches, *rest)

        monkeypatch.setattr(Trials, "__init__", init)
        monkeypatch.setattr(Trials, "errors", errors)
        return asked

    return plant


def test_a_better_schedule_is_found_and_accepted(planted: Any) -> None:
    best = Power(-1, 1, 3)
    planted(lambda one: 0.6 if one.curve == best and one.variant.method == "tome" else 1.0)
    model = small_vit()
    found = calibrate(model, some_images(64), flops=0.8, methods=["ward", "tome"], greedy=False)
    assert found.improved and found.method == "tome" and found.evidence is not None
    assert found.figures["best_candidate"]["shape"] == best.to_json()
    assert found.evidence.overall.mean == pytest.approx(0.6, abs=0.12)
    assert 0.75 < found.flops_share <= 0.8
    patch(model, **found.arguments)(some_images(1))
    assert report(model).tokens == tuple(found.figures["tokens"])
    assert report(model).flops_share == pytest.approx(found.flops_share)


def most_below(model: nn.Module, method: str, flops: float) -> Counts:
    """The greatest counts of a method's own shape that cost at most `flops`, by trying budgets one after the other."""
    for asked in range(round(1000 * flops), 0, -1):
        with reduced(model, method, flops=asked / 1000):
            model(some_images(1))
            if report(model).flops_share <= flops:
                return report(model).tokens
    raise AssertionError("nothing is as cheap")


def test_noise_keeps_the_default(planted: Any) -> None:
    asked = planted(lambda one: 1.0)
    model = small_vit()
    found = calibrate(model, some_images(64), flops=0.8, methods=["ward", "tome"], greedy=False)
    assert len({(str(one.variant), one.counts) for one in asked}) > 20  # the best of many looks good on few images
    assert not found.improved and "the default is as good, keep it" in str(found)
    assert found.method == "ward" and found.arguments["schedule"].shape == lookup("ward").shape
    assert tuple(found.figures["tokens"]) == most_below(model, "ward", 0.8)
    assert found.evidence is not None and not found.evidence.better


def test_a_gain_that_is_not_shown_says_how_many_sources_would_show_it() -> None:
    g = torch.Generator().manual_seed(0)
    default = torch.rand(8, 2, generator=g, dtype=torch.float64) + 0.1
    evidence = compare(default * torch.tensor([0.5, 1.3, 0.9] * 3)[:8, None], default, range(8), ("a", "b"))
    assert not evidence.better and evidence.needed is not None and evidence.needed > 8
    assert f"would show on about {evidence.needed} such sources" in explain(evidence)[-1]


def test_a_gain_on_sources_that_chose_is_not_enough(planted: Any) -> None:
    """Four of the sources hold all images: what is better on two is checked on two, which are too few."""
    planted(lambda one: 1.0 if one.curve is None else 0.5)
    sources = [i % 4 for i in range(64)]
    found = calibrate(small_vit(), some_images(64), flops=0.8, methods=["tome"], greedy=False, sources=sources)
    assert not found.improved and "2 sources are too few" in found.verdict


def test_the_model_stays_as_it_is_and_a_repeated_search_gives_the_same() -> None:
    model = small_vit().train()
    patch(model, "tome", r=1)
    before, reduction = {name: value.clone() for name, value in model.state_dict().items()}, reduction_of(model)
    batches = [(part, None) for part in some_images(12).split(5)]
    first, second = (calibrate(model, batches, flops=0.8, methods=["tome"]) for _ in range(2))
    assert first == second and first.figures["candidates"] > 10
    assert model.training and reduction_of(model) is reduction
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fresh = calibrate(unpatch(model).eval(), some_images(12), flops=0.8, methods=["tome"])
    assert fresh == first


def test_errors_equal_those_of_patching_by_hand() -> None:
    model, images = small_vit(), some_images(5)
    measured = Trials(model, Variant("tome"), images, [[3, 1], [0, 2, 4]], Journal())
    candidate = measured.counted(Variant("tome"), (12, 12, 9, 9))
    found = measured.errors(candidate, [0, 1])
    whole = model.forward_features(images)
    patch(model, "tome", schedule=Schedule.keep({0: 12, 2: 9}), restore=True)
    restored = model.forward_features(images)
    cosine = torch.cosine_similarity(whole, restored, dim=-1)[[3, 1, 0, 2, 4]].double()
    expected = torch.stack([1 - cosine[:, 0], 1 - cosine[:, 1:].mean(1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_a_bar_on_the_error_is_kept_on_images_that_chose_nothing(planted: Any) -> None:
    planted(lambda one: 4 * (1 - one.share))
    found = calibrate(small_vit(), some_images(64), error=0.012, methods=["tome"], greedy=False)
    mean = 0.04 * (1 - found.flops_share) * 1.046  # of the noise
    assert mean < 0.012 < mean * 1.35
    planted(lambda one: 5.0)
    with pytest.raises(InvalidValueError, match=r"error=0\.012 is not kept .* allow a greater error"):
        calibrate(small_vit(), some_images(64), error=0.012, methods=["tome"], greedy=False)
    with pytest.raises(InvalidValueError, match="checked on 2 sources"):
        calibrate(small_vit(), some_images(4), error=0.012, methods=["tome"], greedy=False)


def test_a_bar_is_kept_where_the_default_cannot_save_as_much(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to compare with, and the schedule stands."""
    best = Power(-1, 1, 3)
    planted(lambda one: 4 * (1 - one.share) * (0.5 if one.curve == best else 1.0))
    own = Trials.own

    def limited(self: Trials, variant: Variant, flops: float) -> Candidate:
        if flops < 0.69:
            raise InvalidValueError("these layers cannot save as much")
        return own(self, variant, flops)

    monkeypatch.setattr(Trials, "own", limited)
    found = calibrate(small_vit(), some_images(64), error=0.012, methods=["tome"], greedy=False)
    assert found.flops_share < 0.69 and found.evidence is None and not found.improved
    assert "one-sided 95 % bound of 32 sources" in found.verdict


@pytest.mark.parametrize("flops", [0.93, 0.81, 0.7, 0.55])
def test_a_methods_own_shape_costs_no_more_than_was_asked_and_as_much_as_it_can(flops: float) -> None:
    """A budget alone gives the nearest counts, which may be those above."""
    model = small_vit()
    for method in ("tome", "ward", "pitome"):
        measured = Trials(model, Variant(method), some_images(2), [[0, 1]], Journal())
        found = measured.own(Variant(method), flops)
        assert found.share <= flops and found.counts == most_below(model, method, flops)
        patch(model, method, schedule=found.schedule)(some_images(1))
        assert report(model).tokens == found.counts
        unpatch(model)


KILLED = """
import sys, torch
sys.path[:0] = [{folder!r}]
torch.set_num_threads(1)
from test_calibrating import small_vit, some_images
from tokenreduce import calibrate
calibrate(small_vit(), some_images(12), flops=0.8, methods=["tome"], resume={path!r})
"""


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.jsonl"
    whole = calibrate(small_vit(), some_images(12), flops=0.8, methods=["tome"], resume=tmp_path / "whole.jsonl")
    total = len((tmp_path / "whole.jsonl").read_text().splitlines())
    code = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < 5):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = path.read_text().count("\n")
    assert 5 <= done < total
    measured = 0
    measure = trials.Trials._measure

    def counting(self: Trials, lane: nn.Module, batch: int) -> Tensor:
        nonlocal measured
        measured += 1
        return measure(self, lane, batch)

    monkeypatch.setattr(trials.Trials, "_measure", counting)
    assert calibrate(small_vit(), some_images(12), flops=0.8, methods=["tome"], resume=path) == whole
    assert measured == total - done
    assert calibrate(small_vit(), some_images(12), flops=0.8, methods=["tome"], resume=path) == whole
    assert measured == total - done


def test_progress_comes_to_its_end() -> None:
    told: list[float] = []
    calibrate(
        small_vit(), some_images(), flops=0.8, methods=["tome"], progress=lambda fraction, what: told.append(fraction)
    )
    assert told == sorted(told) and 0.75 < told[-1] <= 1 and told[len(told) // 2] < 0.75


def test_progress_moves_while_a_bar_is_searched(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(lambda one: 4 * (1 - one.share))
    errors = Trials.errors

    def telling(self: Trials, candidate: Candidate, batches: Any) -> Tensor:
        found = errors(self, candidate, batches)
        self.tell(str(candidate.variant), len(found))
        return found

    monkeypatch.setattr(Trials, "errors", telling)
    told: list[float] = []
    progress = lambda fraction, what: told.append(fraction)  # noqa: E731
    calibrate(small_vit(), some_images(64), error=0.012, methods=["tome"], greedy=False, progress=progress)
    assert told == sorted(told) and told[0] < 0.1 and 0.2 < told[len(told) // 2] < 0.8 and told[-1] <= 1


def test_optuna_proposes_the_same_for_the_same_seed() -> None:
    pytest.importorskip("optuna")
    model, images = small_vit(), some_images(6)
    first, second = (
        calibrate(model, images, flops=0.8, methods=["tome", "ward"], trials=5, greedy=False) for _ in range(2)
    )
    without = calibrate(model, images, flops=0.8, methods=["tome", "ward"], greedy=False)
    assert first == second and first.figures["candidates"] > without.figures["candidates"]


def test_a_missing_optuna_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InvalidValueError, match=r"pip install 'tokenreduce\[calibrate\]'"):
        calibrate(small_vit(), some_images(4), flops=0.8, trials=3)


def test_layers_bear_less_the_fewer_tokens_they_leave(tmp_path: Path) -> None:
    rows = sensitivities(small_vit(), some_images(4), "tome", keeps=(0.9, 0.5))
    assert [(row["layer"], row["keep"]) for row in rows] == [(layer, q) for layer in range(4) for q in (0.9, 0.5)]
    for few, more in zip(rows[1::2], rows[::2], strict=True):
        assert few["token_error"] > more["token_error"] > 0
        assert few["class_error"] > more["class_error"] or few["layer"] == 3
    assert rows[-1]["class_error"] < 1e-6  # the last layer reduces after the class token has looked at the others
    draw_sensitivities(rows, tmp_path / "layers.png", "tome")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_says_what_was_found(tmp_path: Path) -> None:
    found = calibrate(small_vit(), some_images(12), flops=0.8, methods=["tome"])
    found.save(tmp_path / "schedule.json")
    data = json.loads((tmp_path / "schedule.json").read_text())
    known = data["calibration"]
    assert known["versions"]["torch"] == torch.__version__ and known["model"] == "VisionTransformer"
    assert known["images"] == {"choose": 6, "check": 6} and known["sources"] == 12
    assert known["image_marks"] == [digest(image)[:16] for image in some_images(12)]
    assert known["improved"] == found.improved and known["flops_share"] == round(found.flops_share, 5)
