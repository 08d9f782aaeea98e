"""The demo of vision-language models: the shipped one on questions about composed scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import scene_questions, scenes
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.quality.answers import Answered, answer, hits, mean_interval, same
from tokenreduce.lab.quality.demo import Demo
from tokenreduce.lab.quality.keep_curves import draw_keep_curves
from tokenreduce.lab.quality.kept_places import draw_kept, kept_tokens
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SIDE, SceneProcessor
from tokenreduce.patching.compatibility import compatible

KEEPS = (0.5, 0.25, 0.1)
SCENES, QUESTIONS, BATCH, WORDS = 150, 4, 50, 3
SEED = 2  # of the scenes: other ones than those of the model card
RANDOM_SEEDS = 3  # `random` is the mean of so many draws: one of them may be lucky


class VisionLanguageDemo(Demo):
    """The shipped vision-language model on scenes of test photographs, with every method that fits it.

    Args:
        limit: use so many scenes instead of 150.
    """

    hidden = ("exact_interval", "agreement_interval")
    meaning = (
        "exact: answers all of whose words are right; change: of that, against the unpatched model; over random: "
        "against tokens dropped at random (mean of three draws) at the same keep; agreement: answers that are those of "
        "the unpatched model; KV: bytes of keys and values of a prompt's cache; all intervals are of a bootstrap over "
        "scenes"
    )

    def __init__(self, limit: int | None = None) -> None:
        self.model, self.processor = scene_vlm(), SceneProcessor()
        self.scenes = scenes.load(limit or SCENES, seed=SEED)
        asked = scene_questions.ask_all(self.scenes, QUESTIONS, SEED)
        self.questions = [question for some in asked for question in some]
        self.of_scene = torch.arange(len(self.scenes)).repeat_interleave(QUESTIONS)
        self.methods = compatible(self.model).language
        self.arms = [Arm(name, keep=keep) for name in self.methods for keep in KEEPS]
        self.title = f"scene_vlm on {len(self.questions)} questions about {len(self.scenes)} scenes it has not seen"
        self.settings = {"task": "vlm", "model": "scene_vlm", "images": len(self.scenes)}
        self.settings |= {"questions": len(self.questions), "seed": SEED, "random_seeds": RANDOM_SEEDS}

    def measure(self, progress: Progress) -> list[Row]:
        lanes, refused = try_arms(self.arms, self._lanes)
        forwards = [("unpatched", [self.model]), *((str(arm), models) for arm, models in lanes)]
        total = sum(len(models) for _, models in forwards)
        answers: list[list[Answered]] = []
        for name, models in forwards:
            answers.append([])
            for model in models:
                progress(sum(map(len, answers)) / total, name)
                answers[-1].append(self._answer(model))
        progress(1.0, "done")
        return self._rows([arm for arm, _ in lanes], answers) + refused

    def _lanes(self, arm: Arm) -> list[Any]:
        """The models of an arm: one, or one for each draw of `random`."""
        if arm.method != "random":
            return [patched_lane(self.model, arm)]
        seeded = (Arm(arm.method, seed=seed, **arm.arguments) for seed in range(RANDOM_SEEDS))
        return [patched_lane(self.model, one) for one in seeded]

    def _answer(self, model: Any) -> Answered:
        images, text = self.scenes.images[self.of_scene], [question.text for question in self.questions]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for products so small more threads only wait for each other
        try:
            return answer(model, self.processor, images, text, BATCH, max_new_tokens=WORDS)
        finally:
            torch.set_num_threads(threads)

    def _rows(self, arms: Sequence[Arm], answers: Sequence[Sequence[Answered]]) -> list[Row]:
        right = [[question.answer] for question in self.questions]
        exact = [torch.stack([hits(one.texts, right) for one in some]).mean(0) for some in answers]
        alike = [torch.stack([same(one.texts, answers[0][0].texts) for one in some]).mean(0) for some in answers]
        chance = {arm.budget: hit for arm, hit in zip(arms, exact[1:], strict=True) if arm.method == "random"}
        whole = answers[0][0].kv_bytes
        rows: list[Row] = [{"method": "unpatched", "budget": None, **self._figures(exact[0], alike[0], whole, whole)}]
        for arm, hit, agrees, some in zip(arms, exact[1:], alike[1:], answers[1:], strict=True):
            row = {"method": arm.method, "budget": arm.budget}
            row |= self._figures(hit, agrees, some[0].kv_bytes, whole)
            row |= self._against(hit - exact[0], "change")
            if arm.method != "random":
                row |= self._against(hit - chance[arm.budget], "over_random")
            rows.append(row)
        return rows

    def _figures(self, exact: Tensor, agrees: Tensor, held: int, whole: int) -> Row:
        return {
            "images": len(self.scenes),
            "exact": exact.mean().item(),
            "exact_interval": mean_interval(exact, self.of_scene),
            "agreement": agrees.mean().item(),
            "agreement_interval": mean_interval(agrees, self.of_scene),
            "kv_kib": held / len(self.questions) / 1024,
            "kv_share": held / whole,
        }

    def _against(self, difference: Tensor, key: str) -> Row:
        return {key: difference.mean().item(), f"{key}_interval": mean_interval(difference, self.of_scene)}

    def summary(self, rows: Sequence[Row]) -> list[str]:
        return [sentence for keep in KEEPS for sentence in beat_random(rows, keep)]

    def draw(self, rows: Sequence[Row], out: Path) -> list[Path]:
        accuracy, tokens = out / "accuracy.png", out / "kept.png"
        draw_keep_curves(rows, accuracy, "scene_vlm, questions about scenes, without training")
        question = self.questions[0]
        inputs = self.processor(images=self.scenes.images[:1], text=[question.text])
        keep = KEEPS[1]
        lanes, _ = try_arms([arm for arm in self.arms if arm.arguments["keep"] == keep], self._lanes)
        kept = {arm.method: kept_tokens(models[0], inputs) for arm, models in lanes}
        title = f"{question.text} Left in the last layer at keep={keep}"
        draw_kept(self.scenes.images[0], kept, (SIDE, SIDE), tokens, title)
        return [accuracy, tokens]


def beat_random(rows: Sequence[Row], keep: float) -> list[str]:
    """Which methods are surely better or worse than chance at a budget; the rest may be either."""
    some = [row for row in rows if row["budget"] == f"keep={keep}" and "over_random" in row]
    if not some:
        return []
    some.sort(key=lambda row: -row["over_random"])
    better = [row for row in some if row["over_random_interval"][0] > 0]
    worse = [row for row in some if row["over_random_interval"][1] < 0]
    says = [
        f"{which} than random, in points: {', '.join(_named(found))}"
        for which, found in (("better", better), ("worse", worse))
        if found
    ]
    return [f"At keep={keep} {'; '.join(says) or 'no method differs from random'}."]


def _named(rows: Sequence[Row]) -> list[str]:
    return [f"{row['method']} ({100 * row['over_random']:+.1f})" for row in rows]
