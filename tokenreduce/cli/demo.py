"""`tokenreduce demo`: the shipped model on the shipped images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import tokenreduce
from tokenreduce.cli.arguments import progress_bar
from tokenreduce.cli.demo_dense import METHODS as DENSE_METHODS
from tokenreduce.cli.demo_dense import MODELS, demo_dense
from tokenreduce.cli.evaluate import prepare, watch
from tokenreduce.cli.output import Row, console, print_refused, print_table, write_json
from tokenreduce.errors import unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.folders import load_data
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.pictures import draw_tokens, draw_tradeoff
from tokenreduce.lab.quality.classification import DEFINITIONS, Patched, measure
from tokenreduce.lab.quality.predictors import load_predictor
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.lab.speed.timing import interleave, synchronizer

METHODS = ("ward", "tome", "evit", "random", "pool")
BUDGETS = (0.80, 0.60, 0.45)
HIDDEN = ("budget", "top5", "token_error")
BATCH, ROUNDS = 100, 9


def demo(
    task: Annotated[str, typer.Option(help="classification, segmentation or detection")] = "classification",
    all_methods: Annotated[
        bool, typer.Option("--all", help=f"every method, not only {', '.join(METHODS)}: takes a while")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="use so many images, of 2,000 (scenes: 200)")] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures")] = Path("out"),
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")] = None,
) -> None:
    """Run a shipped model on real images, unpatched and with each method, and show what is lost and saved."""
    if task not in ("classification", *MODELS):
        raise unknown("task", task, ("classification", *MODELS))
    if task in MODELS:
        names = tokenreduce.compatible(load_predictor(MODELS[task], task).module) if all_methods else DENSE_METHODS
        demo_dense(task, names, limit, out, json_file)
    else:
        demo_classification(all_methods, limit, out, json_file)


def demo_classification(all_methods: bool, limit: int | None, out: Path, json_file: Path | None) -> None:
    """Classify the shipped images, and time it."""
    model = fashion_vit()
    images = load_data("fashion-mnist", model, limit=limit)
    names = tokenreduce.methods() if all_methods else METHODS
    patched, refused = prepare(model, [Arm(name, flops=share) for name in names for share in BUDGETS])
    with progress_bar() as progress:
        batches = watch(images.batches(BATCH), lambda part, what: progress(part * 0.8, what), f"{len(images)} images")
        rows = measure(model, patched, batches, len(images.class_names))
        batch = next(iter(images.batches(BATCH)))[0]
        speeds = measure_speed(model, patched, batch, lambda part, what: progress(0.8 + part * 0.2, what))
    rows = [row | speed for row, speed in zip(rows, speeds, strict=True)]
    shown = [{key: value for key, value in row.items() if key not in HIDDEN} for row in rows + refused]
    print_table(shown, f"fashion_vit on {len(images)} Fashion-MNIST test images, {torch.get_num_threads()} CPU threads")
    console.print(DEFINITIONS, highlight=False)
    print_refused(refused)
    for sentence in summary(rows):
        console.print(sentence, style="bold", highlight=False)
    draw(model, rows, out)
    if json_file is not None:
        write_json(json_file, "demo", rows + refused, images=len(images), batch_size=len(batch), rounds=ROUNDS)


def measure_speed(
    model: nn.Module, patched: Sequence[Patched], batch: Tensor, progress: Callable[[float, str], None]
) -> list[Row]:
    """Images a second and speed-up of the unpatched model and each arm, as deployed, in interleaved rounds."""
    models = [model, *(arm.deployed for arm in patched)]
    names = ["unpatched", *(f"{arm.method} at {arm.budget}" for arm in patched)]
    done = 0

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        progress(done / (len(models) * (ROUNDS + 1)), f"speed of {name}")

    calls = {name: partial(one, batch) for name, one in zip(names, models, strict=True)}
    with torch.inference_mode():
        times = interleave(calls, ROUNDS, 0.0, synchronizer(batch.device), tick)
    full = times["unpatched"]
    return [
        {"images_per_second": len(batch) / times[name].median, "speedup": statistics.median(full.ratios(times[name]))}
        for name in names
    ]


def summary(rows: Sequence[Row]) -> list[str]:
    """What the table says, in a sentence or two."""
    sentences = []
    middle = f"flops={BUDGETS[1]}"
    arms = [row for row in rows if row["method"] != "unpatched"]
    candidates = [row for row in arms if row["budget"] == middle]
    if candidates:
        best = min(candidates, key=lambda row: row["class_error"])
        sentences.append(
            f"At {BUDGETS[1]:.0%} of the compute {best['method']} stays closest to the unpatched model "
            f"(class error {best['class_error']:.4f}): top-1 changes by {100 * best['top1_change']:+.2f} points."
        )
    if all(row["speedup"] < 1 for row in arms):
        sentences.append("Every method is slower than the unpatched model: on this machine reduction does not pay.")
    return sentences


def draw(model: nn.Module, rows: Sequence[Row], out: Path) -> None:
    """Write tradeoff.png and tokens.png."""
    out.mkdir(parents=True, exist_ok=True)
    draw_tradeoff(rows, out / "tradeoff.png", "fashion_vit, Fashion-MNIST, without training")
    pictures, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    pictures = pictures[:: len(pictures) // 6][:6]
    budget = BUDGETS[1]
    lane: Any = patched_lane(model, Arm("tome", flops=budget))
    with torch.inference_mode():
        lane(fashion_mnist.normalise(pictures))
    report = tokenreduce.report(lane)
    depth = len(report.tokens)
    layers = sorted({0, *(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))})
    maps = {f"after layer {layer}\n{report.tokens[layer]} tokens": report.map_after(layer) for layer in layers}
    draw_tokens(pictures, maps, lane.patch_embed.grid_size, out / "tokens.png", f"tome at {budget:.0%} of the compute")
    console.print(f"wrote {out / 'tradeoff.png'} and {out / 'tokens.png'}", highlight=False)
