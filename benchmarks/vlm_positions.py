"""What becomes of answers where tokens that are left keep their positions, or are numbered anew
-> results/vlm_positions.json.

python benchmarks/vlm_positions.py     # two minutes on one thread

The scenes and questions are those of `tokenreduce demo --task vlm --limit 250`. Nothing is chosen by it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import scene_questions, scenes
from tokenreduce.lab.environment import environment
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.quality.answers import answer, hits, mean_interval
from tokenreduce.lab.quality.demo_vlm import BATCH, QUESTIONS, RANDOM_SEEDS, SEED, WORDS
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SceneProcessor

RESULTS = Path(__file__).parent / "results/vlm_positions.json"
SCENES, KEEP = 250, 0.5
POSITIONS = ("renumber", "keep")
METHODS = ("divprune", "fastervlm", "fopru", "visionzip", "random")


def main() -> None:
    torch.set_num_threads(1)  # for products so small more threads only wait for each other
    model, processor = scene_vlm(), SceneProcessor()
    seen = scenes.load(SCENES, seed=SEED)
    asked = [question for some in scene_questions.ask_all(seen, QUESTIONS, SEED) for question in some]
    of_scene = torch.arange(SCENES).repeat_interleave(QUESTIONS)
    text, right = [question.text for question in asked], [[question.answer] for question in asked]
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        exact = []
        for positions in POSITIONS:
            seeds = [{"seed": seed} for seed in range(RANDOM_SEEDS)] if method == "random" else [{}]
            lanes = [patched_lane(model, Arm(method, keep=KEEP, positions=positions, **seed)) for seed in seeds]
            said = [
                answer(lane, processor, seen.images[of_scene], text, BATCH, max_new_tokens=WORDS).texts
                for lane in lanes
            ]
            exact.append(torch.stack([hits(texts, right) for texts in said]).mean(0))
        renumber, keep = (float(values.mean()) for values in exact)
        gain = {"gain": keep - renumber, "gain_interval": mean_interval(exact[1] - exact[0], of_scene)}
        rows.append({"method": method, "renumber": renumber, "keep": keep, **gain})
        print(json.dumps(rows[-1]), flush=True)
    content = {"keep": KEEP, "images": SCENES, "questions": len(asked), "environment": environment(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
