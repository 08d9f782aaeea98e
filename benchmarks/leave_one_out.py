"""Does `calibrate` ever make photographs worse that it has not seen? -> results/leave_one_out.json.

    python benchmarks/leave_one_out.py                        # the photographs that pip installs
    python benchmarks/leave_one_out.py --photographs DIR      # and those of a folder, one source each

For every source: `calibrate` on all others, at 60 % of the multiply-adds of DINOv2 ViT-S/14, and the errors of its
result and of the default on the source left out. With one seed, which parts the others, nearly the same images choose
in every fold: `--seeds 3` leaves each source out three times, with seeds 0, 1 and 2.

An error of an image does not depend on the others of a batch, which is checked and written down. So each is measured
once for all folds. What is measured is kept in runs/leave_one_out/, and a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from quality_real import chosen, normalised
from quotients import source_weights
from torch import Tensor, nn

from tokenreduce.cli.arguments import progress_bar
from tokenreduce.lab.data.photographs import COUNT, photographs
from tokenreduce.lab.environment import environment
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.quality.bootstrap import interval
from tokenreduce.lab.search.calibrating import choose_variants
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.curves import Curve
from tokenreduce.lab.search.gate import FLOOR
from tokenreduce.lab.search.parting import part
from tokenreduce.lab.search.searching import Search, variant_of
from tokenreduce.lab.search.trials import Candidate, Trials, Variant
from tokenreduce.lab.shipped import dinov2_small

RESULTS = Path(__file__).parent / "results/leave_one_out.json"
RUNS = Path("runs/leave_one_out")
FLOPS, BATCH, HELD_OUT = 0.6, 8, 0.5
Row = dict[str, Any]


class Remembered(Trials):
    """Trials of one image at a time, for all folds: what the journal knows of an image holds in every batch."""

    def __init__(self, model: nn.Module, variant: Variant, images: Tensor, journal: Journal) -> None:
        super().__init__(model, variant, images, [[number] for number in range(len(images))], journal)
        self.batches: Sequence[Sequence[int]] = [[number] for number in self.all]
        self._shaped: dict[tuple[str, Curve, float], Candidate] = {}

    def shaped(self, variant: Variant, curve: Curve, flops: float) -> Candidate:
        """As in `Trials`; folds ask for the same ones, which no image decides."""
        key = (str(variant), curve, flops)
        if key not in self._shaped:
            self._shaped[key] = super().shaped(variant, curve, flops)
        return self._shaped[key]

    def errors(self, candidate: Candidate, batches: Sequence[int]) -> Tensor:
        """Errors on the images of these batches of the fold."""
        return super().errors(candidate, [image for batch in batches for image in self.batches[batch]])

    def of_images(self, candidate: Candidate, images: Sequence[int]) -> Tensor:
        """Errors `(images, kinds)` on images by their number."""
        return super().errors(candidate, images)


def calibrated(
    trials: Remembered,
    variants: Sequence[Variant],
    images: Sequence[int],
    sources: Sequence[int],
    seed: int,
    progress: Callable[[float, str], object],
) -> Calibration:
    """What `calibrate(model, images, flops=FLOPS, sources=sources, seed=seed)` finds, but for its `image_marks`."""
    parts = part(len(images), sources, HELD_OUT, seed)
    trials.batches = [[images[place] for place in batch] for batch in parts.batches]
    search = Search(variants, parts, 0, True, seed, progress)
    trials.tell = search.tell
    return search.at(trials, FLOPS)


def fold(
    trials: Remembered,
    variants: Sequence[Variant],
    sources: Sequence[int],
    left_out: int,
    seed: int,
    progress: Callable[[float, str], object],
) -> Row:
    """What the sources but one choose, and its errors on that one, the mean of its squares: of the result (`chosen`),
    of the default, and of the best candidate, which is the result only where the check lets it through."""
    others = [image for image, source in enumerate(sources) if source != left_out]
    own = [image for image, source in enumerate(sources) if source == left_out]
    found = calibrated(trials, variants, others, [sources[image] for image in others], seed, progress)
    default = trials.own(variants[0], FLOPS)
    result = Candidate(variant_of(found), found.schedule, found.flops_share, tuple(found.figures["tokens"]))
    best = found.figures["best_candidate"]
    candidate = default if best is None else trials.counted(Variant(best["method"], best["options"]), best["counts"])
    errors = {"chosen": result, "default": default, "candidate": candidate}
    return {
        "seed": seed,
        "improved": found.improved,
        "verdict": found.verdict,
        "best_candidate": best,
        "checked": None if found.evidence is None else found.evidence.to_json(),
        **{name: trials.of_images(one, own).mean(0).tolist() for name, one in errors.items()},
    }


def summary(rows: Sequence[Row], kinds: Sequence[str], which: str) -> dict[str, Any]:
    """Errors of `which`, "chosen" or "candidate", over those of the default, for each kind of error: the ratio of the
    means, the geometric mean, 95 % intervals of a bootstrap over sources, and how many are larger, by how much.

    A row of no other candidate has a ratio of 1.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(row["source"] for row in rows))}
    weights = source_weights(torch.tensor([names[row["source"]] for row in rows]))
    found: dict[str, Any] = {"folds": len(rows), "sources": len(names)}
    for place, kind in enumerate(kinds):
        own, default = (torch.tensor([row[name][place] for row in rows]).double() for name in (which, "default"))
        ratios = (own + FLOOR) / (default + FLOOR)
        found[kind] = {
            "of_means": float(own.mean() / default.mean()),
            "of_means_interval": interval((weights @ own) / (weights @ default)),
            "geometric": float(ratios.log().mean().exp()),
            "geometric_interval": interval((weights @ ratios.log()).exp()),
            "larger": int((ratios > 1).sum()),
            "smaller": int((ratios < 1).sum()),
            "largest": float(ratios.max()),
            "smallest": float(ratios.min()),
        }
    return found


def apart(trials: Remembered, candidates: Sequence[Candidate], images: Tensor) -> float:
    """The largest difference between the error of an image alone and in a batch, as a share of the error."""
    first = list(range(min(BATCH, len(images))))
    together = Trials(trials.base, candidates[0].variant, images[first], [first], Journal())
    pairs = [(trials.of_images(one, first), together.errors(one, [0])) for one in candidates]
    return max(float(((alone - batch).abs() / (alone + FLOOR)).max()) for alone, batch in pairs)


def content(rows: Sequence[Row], trials: Trials, names: Sequence[str], settings: Row) -> Row:
    """The results file; while folds are left it says how many."""
    return {
        **settings,
        "environment": environment(),
        "kinds": list(trials.kinds),
        "folds_left": settings["seeds"] * len(names) - len(rows),
        "improved": sum(row["improved"] for row in rows),
        "with_candidate": sum(row["best_candidate"] is not None for row in rows),
        "photographs": list(names),
        "chosen": summary(rows, trials.kinds, "chosen"),
        "candidate": summary(rows, trials.kinds, "candidate"),
        "rows": list(rows),
    }


def sentence(row: Row) -> str:
    """A fold in words."""

    def over(name: str) -> str:
        return ", ".join(f"{own / default:.3f}" for own, default in zip(row[name], row["default"], strict=True))

    ratios = f"{over('chosen')} of the default's errors, {over('candidate')} unchecked"
    return f"{row['source']}, seed {row['seed']}: {ratios}; {row['verdict']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="a folder of further photographs, beside those of packages")
    parser.add_argument("--seeds", type=int, default=1, help="each source is left out so many times")
    args = parser.parse_args()
    files = chosen(args.photographs)
    count = max(COUNT, len(files))
    squares, _ = photographs(count, files=files.values())
    images = torch.cat([batch for batch, _ in normalised(squares)])
    sources = [number % len(files) for number in range(count)]  # the photographs take turns
    model = dinov2_small.dinov2_small()
    variants = choose_variants(model, None)
    trials = Remembered(model, variants[0], images, Journal(RUNS / "trials.jsonl"))
    alone = apart(trials, [trials.own(variant, FLOPS) for variant in variants], images)
    settings = {"model": dinov2_small.NAME, "flops": FLOPS, "images": count, "seeds": args.seeds, "apart": alone}
    rows: list[Row] = []
    with progress_bar() as tell:
        for number in range(args.seeds * len(files)):
            seed, left_out = divmod(number, len(files))
            name = list(files)[left_out]

            def within(fraction: float, what: str, done: int = number, name: str = name) -> None:
                tell((done + fraction) / (args.seeds * len(files)), f"without {name}: {what}")

            rows.append({"source": name, **fold(trials, variants, sources, left_out, seed, within)})
            RESULTS.write_text(json.dumps(content(rows, trials, list(files), settings), indent=1) + "\n")
            print(f"[{len(rows)}] {sentence(rows[-1])}", flush=True)


if __name__ == "__main__":
    main()
