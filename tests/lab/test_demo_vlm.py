"""The rows of the vision-language demo against loops, what it says of them, and what it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenreduce import compatible
from tokenreduce.lab.data import scene_questions, scenes
from tokenreduce.lab.quality import demo_vlm
from tokenreduce.lab.quality.answers import Answered
from tokenreduce.lab.quality.keep_curves import keep_curves
from tokenreduce.patching.finding import language_reduction_of

NUMBERS = 2 * demo_vlm.QUESTIONS  # two scenes


@pytest.fixture
def shown() -> demo_vlm.VisionLanguageDemo:
    return demo_vlm.VisionLanguageDemo(limit=2)


def test_every_method_that_fits(shown: demo_vlm.VisionLanguageDemo) -> None:
    fits = compatible(shown.model).language
    assert shown.methods == fits and {"divprune", "fastervlm", "fastv", "random"} <= set(fits)
    assert [(arm.method, arm.arguments) for arm in shown.arms] == [
        (name, {"keep": keep}) for name in fits for keep in (0.5, 0.25, 0.1)
    ]
    again = scene_questions.ask_all(scenes.load(2, seed=2), 4, 2)
    assert shown.questions == [*again[0], *again[1]] and shown.of_scene.tolist() == [0] * 4 + [1] * 4


def test_rows(shown: demo_vlm.VisionLanguageDemo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are right where a test says; `random` is the mean of its draws."""
    monkeypatch.setattr(demo_vlm, "KEEPS", (0.5,))
    wanted = {"unpatched": [1] * 7 + [0], "divprune": [1] * 5 + [0] * 3}
    draws = {seed: [1] * seed + [0] * (8 - seed) for seed in range(3)}

    def say(model: Any) -> Answered:
        name = "unpatched"
        if model is not shown.model:
            done = language_reduction_of(model)
            name = done.reducer.name
            right = draws[done.reducer.seed] if name == "random" else wanted[name]
        else:
            right = wanted[name]
        texts = [q.answer if hit else "what" for q, hit in zip(shown.questions, right, strict=True)]
        return Answered(texts, 8192 if name == "unpatched" else 2048)

    monkeypatch.setattr(shown, "_answer", say)
    shown.arms = [demo_vlm.Arm(name, keep=0.5) for name in ("divprune", "random")]
    parts: list[float] = []
    whole, divprune, random = shown.measure(lambda part, what: parts.append(part))
    assert [row["exact"] for row in (whole, divprune, random)] == pytest.approx([7 / 8, 5 / 8, 1 / 8])
    assert [row["agreement"] for row in (whole, divprune, random)] == pytest.approx([1, 6 / 8, 2 / 8])
    assert divprune["change"] == pytest.approx(-2 / 8) and divprune["over_random"] == pytest.approx(4 / 8)
    assert "over_random" not in random and divprune["budget"] == "keep=0.5"
    low, high = divprune["change_interval"]
    assert low == pytest.approx(-2 / 4) and high == pytest.approx(0), "one scene lost two answers, the other none"
    assert whole["kv_kib"] == 1 and divprune["kv_kib"] == 0.25 and divprune["kv_share"] == 0.25
    assert parts == sorted(parts) and parts[0] == 0 and parts[-1] == 1


def test_what_is_said_of_random() -> None:
    def row(method: str, over: float, low: float, high: float) -> dict[str, Any]:
        return {"method": method, "budget": "keep=0.1", "over_random": over, "over_random_interval": (low, high)}

    rows = [row("a", 0.02, 0.001, 0.05), row("b", 0.1, 0.05, 0.2), row("c", -0.1, -0.2, -0.01), row("d", 0.1, 0.0, 0.2)]
    assert demo_vlm.beat_random(rows, 0.1) == [
        "At keep=0.1 better than random, in points: b (+10.0), a (+2.0); worse than random, in points: c (-10.0)."
    ]
    assert demo_vlm.beat_random(rows[3:], 0.1) == ["At keep=0.1 no method differs from random."]
    assert demo_vlm.beat_random(rows, 0.5) == []


def test_pictures(shown: demo_vlm.VisionLanguageDemo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(demo_vlm, "draw_kept", lambda *given: drawn.extend(given))
    monkeypatch.setattr(demo_vlm, "draw_keep_curves", lambda *given: None)
    assert shown.draw([], tmp_path) == [tmp_path / "accuracy.png", tmp_path / "kept.png"]
    image, kept, grid, path, title = drawn
    assert image.shape == (1, 80, 80) and grid == (10, 10) and path == tmp_path / "kept.png"
    assert list(kept) == shown.methods and "keep=0.25" in title and shown.questions[0].text in title
    assert {len(kept[name]) for name in ("divprune", "fastervlm", "fastv", "ward", "random")} == {25}


def test_curves_stand_at_their_budgets() -> None:
    def row(method: str, keep: float, exact: float) -> dict[str, Any]:
        figures = {"exact": exact, "exact_interval": (exact - 0.1, exact + 0.1), "kv_share": keep + 0.1}
        return {"method": method, "budget": f"keep={keep}", **figures}

    rows = [row(name, keep, keep) for name in ("divprune", "random") for keep in (0.5, 0.1)]
    unpatched = {"method": "unpatched", "budget": None, "exact": 0.9, "kv_share": 1.0}
    left, right = keep_curves([unpatched, *rows]).axes
    for axis, start in ((left, 10), (right, 20)):
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines) == ["divprune", "random", "unpatched, 90.0%"]
        assert list(lines["divprune"].get_xdata()) == pytest.approx([start, start + 40])
        assert list(lines["divprune"].get_ydata()) == pytest.approx([10, 50])
        assert list(lines["unpatched, 90.0%"].get_ydata()) == pytest.approx([90, 90])
