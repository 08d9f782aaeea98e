"""How good the shipped models are on the test photographs of Fashion-MNIST -> results/shipped_models.json.

python benchmarks/shipped_models.py --data-dir DIR     # some minutes on one thread

The figures of the model card. Nothing is reduced, and nothing was chosen by these photographs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.lab.data import fashion_mnist, scene_questions, scenes
from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.answers import answer, hits
from tokenreduce.lab.quality.classification import classification_lanes
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.embedded import load_scenes
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.shipped.fashion_vim import fashion_vim
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SceneProcessor

RESULTS = Path(__file__).parent / "results/shipped_models.json"
SCENES, QUESTIONS, SEED = 2000, 4, 1
WORDS = 3  # the longest answer


def classifier(make: Callable[[], nn.Module], folder: Path) -> dict[str, Any]:
    [lane], _ = classification_lanes(make(), [], len(fashion_mnist.CLASSES))
    images, labels = fashion_mnist.load("test", folder)
    for batch, truth in zip(images.split(200), labels.split(200), strict=True):
        lane.show((fashion_mnist.normalise(batch), truth))
    return {"images": len(images), "top1": float(lane.metric.figures["top1"].mean())}


def dense(name: str, task: str, key: str, folder: Path) -> dict[str, Any]:
    data = load_scenes(task, folder, SCENES, seed=SEED)
    [row] = measure_dense(load_predictor(name, task), [], data, 50, rounds=0)
    return {"images": len(data), key: row[key]}


def answers(folder: Path) -> dict[str, Any]:
    """All words of an answer right, over all questions and over those of each kind."""
    made = scenes.load(SCENES, folder=folder, seed=SEED)
    asked = [question for some in scene_questions.ask_all(made, QUESTIONS, SEED) for question in some]
    images = made.images.repeat_interleave(QUESTIONS, 0)
    text = [question.text for question in asked]
    said = answer(scene_vlm(), SceneProcessor(), images, text, max_new_tokens=WORDS).texts
    exact = hits(said, [[question.answer] for question in asked])
    kinds = {}
    for kind in sorted({question.kind for question in asked}):
        mine = torch.tensor([question.kind == kind for question in asked])
        kinds[kind] = float(exact[mine].mean())
    return {"images": len(made), "questions": len(asked), "exact": float(exact.mean()), "kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    folder = fashion_mnist.find(parser.parse_args().data_dir)
    torch.set_num_threads(1)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "fashion_vit": lambda: classifier(fashion_vit, folder),
        "scene_vlm": lambda: answers(folder),
        "scene_segmenter": lambda: dense("scene_segmenter", "segmentation", "miou", folder),
        "scene_detector": lambda: dense("scene_detector", "detection", "ap50", folder),
        "fashion_vim": lambda: classifier(fashion_vim, folder),
    }
    models = {}
    for name, measure in measures.items():
        models[name] = measure()
        print(json.dumps({name: models[name]}), flush=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "models": models}, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
