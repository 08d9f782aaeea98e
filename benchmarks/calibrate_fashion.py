"""What `calibrate` gains on the small model -> results/calibrate_fashion.json.

    python benchmarks/calibrate_fashion.py --data-dir DIR    # the folder of all of Fashion-MNIST

`tokenreduce calibrate --model fashion_vit --images fashion-mnist --data-dir DIR --limit 64 --flops 0.6` on training
images, once for each of a few seeds, which part the images anew, and its errors and the default's on the 2,000 test
images that come with the library. What is measured is kept in runs/calibrate_fashion/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from leave_one_out import summary

from tokenreduce.cli.arguments import progress_bar
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.unlabelled import load_unlabelled
from tokenreduce.lab.environment import environment
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.search.calibrating import DEFAULT, calibrate
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.parting import split
from tokenreduce.lab.search.searching import variant_of
from tokenreduce.lab.search.trials import Candidate, Trials, Variant
from tokenreduce.lab.shipped import fashion_vit

RESULTS = Path(__file__).parent / "results/calibrate_fashion.json"
RUNS = Path("runs/calibrate_fashion")
FLOPS, LIMIT, SEEDS = 0.6, 64, 5


def tested(trials: Trials, found: Calibration) -> dict[str, Any]:
    """Errors of a result over those of the default, on all images of the trials."""
    result = Candidate(variant_of(found), found.schedule, found.flops_share, tuple(found.figures["tokens"]))
    own, default = (trials.errors(one, trials.all).tolist() for one in (result, trials.own(Variant(DEFAULT), FLOPS)))
    pairs = enumerate(zip(own, default, strict=True))
    rows = [{"source": number, "chosen": one, "default": other} for number, (one, other) in pairs]
    return summary(rows, trials.kinds, "chosen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    model = fashion_vit.fashion_vit()
    data = load_unlabelled("fashion-mnist", model, LIMIT, data_dir=args.data_dir)
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    test = fashion_mnist.normalise(images)
    journal = RUNS / "trials.jsonl"
    trials = Trials(model, Variant(DEFAULT), test, split(range(len(test))), Journal(journal))
    rows = []
    with progress_bar() as tell:
        for seed in range(SEEDS):

            def within(fraction: float, what: str, done: int = seed) -> None:
                tell((done + fraction) / SEEDS, f"seed {done}: {what}")

            found = calibrate(
                model, data.images, flops=FLOPS, sources=data.sources, seed=seed, resume=journal, progress=within
            )
            said = found.to_json()
            kept = {name: said[name] for name in ("method", "options")}
            about = {name: said["calibration"][name] for name in ("improved", "verdict", "tokens", "checked")}
            rows.append({"seed": seed, **kept, **about, "test": tested(trials, found)})
            print(f"seed {seed}: {found}\n{json.dumps(rows[-1]['test'])}", flush=True)
    content = {"model": "fashion_vit", "flops": FLOPS, "images": LIMIT, "test_images": len(test)}
    content |= {"environment": environment(), "kinds": list(trials.kinds), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
