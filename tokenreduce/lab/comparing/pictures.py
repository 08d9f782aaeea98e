"""The pictures of a comparison: errors and accuracy against compute, errors against time, tokens of sample images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing.choosing import loss, measured
from tokenreduce.lab.comparing.running import Comparison
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.inputs import normalisation, takes_fashion
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.pictures import (
    draw_errors,
    draw_methods,
    draw_tokens,
    draw_tradeoff,
    last_of_quarters,
    lines_of,
    reduced_row,
    style_of,
)
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.reporting import Report
from tokenreduce.patching.verbs import report

ERRORS = {"class_error": "class error", "token_error": "token error"}
DRAWN = 8  # methods whose tokens are drawn: those that lose least at the budget in the middle
LARGEST = 250_000  # bytes of a picture of tokens, which the page holds


def draw_all(comparison: Comparison, out: Path) -> dict[str, str]:
    """Write the pictures into `out`; their files, and in words what each shows."""
    rows, name = comparison.rows, comparison.settings["model"]
    found = {"errors.png": f"Errors of {name} against its share of the multiply-adds, a line for each method."}
    draw_errors(rows, out / "errors.png", ERRORS, f"{name}: errors against compute")
    if "top1" in rows[0]:
        found["accuracy.png"] = f"Top-1 accuracy of {name} against its share of the multiply-adds."
        draw_tradeoff(rows, out / "accuracy.png", f"{name}: accuracy against compute")
    if "speedup" in rows[0]:
        found["speed.png"] = f"Token error of {name} against its time as a share of the unpatched model's."
        draw_speed(rows, out / "speed.png", f"{name}: error against measured time")
    return found | draw_samples(comparison, out)


def draw_speed(rows: Sequence[dict], path: Path, title: str) -> None:
    """Token error against measured time, with 95 % intervals of the latter."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for method, own in lines_of([row for row in measured(rows) if row["token_error"]]).items():
        times = [100 / row["speedup"] for row in own]
        ends = [sorted(100 / end for end in row["speedup_interval"]) for row in own]
        beside = [[max(0.0, t - low) for t, (low, _) in zip(times, ends, strict=True)]]
        beside += [[max(0.0, high - t) for t, (_, high) in zip(times, ends, strict=True)]]
        errors = [row["token_error"] for row in own]
        style = style_of(method) | {"linestyle": "none"}
        axis.errorbar(times, errors, xerr=beside, elinewidth=0.6, label=method, **style)
    axis.axvline(100, color="black", linestyle="--", linewidth=1, label="unpatched")
    axis.set(yscale="log", xlabel="time, % of the unpatched model", ylabel="token error", title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)


def draw_samples(comparison: Comparison, out: Path) -> dict[str, str]:
    """Tokens of the samples after the last layer, method by method, and layer by layer of the best method."""
    _, backbone, adapter = find_backbone(comparison.network)
    grid = adapter.geometry(backbone).grid
    arms = middle_arms(comparison)
    if len(grid) != 2 or not arms:
        return {}
    pixels, maps, first = pixels_of(comparison.network, comparison.samples), {}, None
    for arm in arms:
        done = reported(comparison.network, arm, comparison.samples)
        if done.input_tokens != grid[0] * grid[1] or done.tokens_left == done.input_tokens:
            continue
        maps[f"{arm.method}\n{done.tokens_left} tokens"] = done.map
        first = first or arm
    if first is None:
        return {}
    size, at = (grid[0], grid[1]), first.budget.replace("flops=", "")
    draw_tokens(pixels, maps, size, out / "tokens.png", f"tokens after the last layer, {first.budget}")
    alone = reported(comparison.network, first, comparison.samples[:1])
    layers = last_of_quarters(len(alone.tokens))
    draw_methods(pixels[0], [reduced_row(first, alone, layers)], size, out / "layers.png")
    for name in ("tokens.png", "layers.png"):
        shrink(out / name)
    return {
        "tokens.png": f"Sample images and, for each method at {at}, the patches that share a token in the end.",
        "layers.png": f"A sample image, the tokens that {first.method} leaves of it layer by layer, and their sizes.",
    }


def reported(network: nn.Module, arm: Arm, images: Tensor) -> Report:
    """What the arm did with these images."""
    lane = patched_lane(network, arm)
    with torch.inference_mode():
        lane(images.to(next(network.parameters()).device))
    return report(lane)


def middle_arms(comparison: Comparison) -> list[Arm]:
    """The arms that lose least at the budget in the middle, or the nearest that some method reaches, the best first.
    Where only files were measured it is the best of them: each has a budget of its own."""
    shares = sorted(comparison.settings["budgets"])
    middle = shares[len(shares) // 2]
    ranked = sorted(zip(measured(comparison.rows), comparison.arms, strict=True), key=lambda pair: loss(pair[0]))
    there = [arm.arguments["flops"] for _, arm in ranked if "flops" in arm.arguments]
    share = min(there, key=lambda one: abs(one - middle), default=None)
    return [arm for _, arm in ranked if arm.arguments.get("flops") == share][: DRAWN if there else 1]


def pixels_of(network: nn.Module, images: Tensor) -> Tensor:
    """Images `(B, C, H, W)` as the model takes them, as people see them: floats in [0, 1]."""
    if takes_fashion(network):
        mean, std = torch.tensor(fashion_mnist.MEAN), torch.tensor(fashion_mnist.STD)
    else:
        mean, std = (torch.tensor(value)[:, None, None] for value in normalisation(network))
    return (images * std + mean).clamp(0, 1)


def shrink(path: Path) -> None:
    """Rewrite the picture with 256 colours, and smaller until it is small enough for the page."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    while True:
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST or picture.width < 400:
            return
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5))
