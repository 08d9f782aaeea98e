"""Methods side by side on the shipped dense models, and ways of restoring side by side.

    python benchmarks/dense.py segmentation --data-dir DIR               # test scenes -> results/segmentation.json
    python benchmarks/dense.py segmentation --data-dir DIR --held-out    # ways of restoring -> results/restoring_...

`--held-out` makes scenes of 5,000 training photographs that the models were not trained on: choices are made there and
never on test photographs. Intervals are those of a paired bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.embedded import SceneSamples, load_scenes
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.reducers.registry import lookup

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from training import split_photos

METHODS = "ward,tome,expedit,pitome,token_transforming,random,pool,evit,topk,algm,kmeans,dtop"
MODELS = {"segmentation": "scene_segmenter", "detection": "scene_detector"}
BUDGETS = (0.85, 0.70, 0.55)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(MODELS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--held-out", action="store_true", help="ways of restoring, on held-out training photographs")
    parser.add_argument("--method", default=METHODS)
    parser.add_argument("--scenes", type=int, help="500; with --held-out 300")
    parser.add_argument("--rounds", type=int, default=1000, help="of the bootstrap")
    args = parser.parse_args()
    args.scenes = args.scenes or (300 if args.held_out else 500)
    return args


def held_out_scenes(task: str, folder: Path, count: int) -> DenseData:
    made = scenes.compose(*split_photos(folder)["val"], count, seed=1)
    names = {number: name for number, name in enumerate(scenes.CLASSES) if number or task == "segmentation"}
    return DenseData("scenes", task, SceneSamples(made, task), names)


def main() -> None:
    args = parse()
    folder = fashion_mnist.find(args.data_dir)
    methods = args.method.split(",")
    if args.held_out:
        data = held_out_scenes(args.task, folder, args.scenes)
        pairs = [(name, mode) for name in methods for mode in lookup(name).modes]
        arms = [Arm(name, flops=BUDGETS[1], restore=mode) for name, mode in pairs]
    else:
        data = load_scenes(args.task, folder, args.scenes, seed=1)
        arms = [Arm(name, flops=share) for share in BUDGETS for name in methods]
    predictor = load_predictor(MODELS[args.task], args.task)
    rows = measure_dense(
        predictor, arms, data, 50, rounds=args.rounds, progress=lambda part, what: print(f"{part:.0%}", flush=True)
    )
    out = Path(__file__).parent / "results" / f"{'restoring_' if args.held_out else ''}{args.task}.json"
    content = {"images": len(data), "rounds": args.rounds, "environment": environment(), "rows": rows}
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
