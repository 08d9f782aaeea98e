"""What onnx_export.py and openvino_export.py share: options, the two models, timing in turns, and the results file."""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import tokenreduce
from tokenreduce.lab.environment import environment
from tokenreduce.lab.speed.timing import bootstrap_interval, interleave

Run = Callable[[Tensor], Tensor]
Rows = dict[str, dict[str, Any]]
ABOUT = ("model", "method", "options", "flops", "batch", "threads", "rounds")


def parser(said: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="deit_small_patch16_224", help="of timm")
    made.add_argument("--pretrained", action="store_true", help="download the weights; without it they are random")
    made.add_argument("--method", default="tome")
    made.add_argument("--options", nargs="*", default=[], help="of the method, such as rounds=3")
    made.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=15, help="in each, every model has a turn")
    made.add_argument("--out", type=Path, help="folder for the files")
    made.add_argument("--json", type=Path, help="write the figures here too")
    return made


def pair(args: argparse.Namespace) -> tuple[dict[str, nn.Module], Tensor]:
    """The unpatched and the patched model, and images of noise."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    whole = timm.create_model(args.model, pretrained=args.pretrained).eval()
    options = {name: int(value) for name, value in (text.split("=") for text in args.options)}
    fewer = tokenreduce.patch(copy.deepcopy(whole), args.method, flops=args.flops, **options)
    images = torch.randn(args.batch, 3, *timm.data.resolve_model_data_config(whole)["input_size"][1:])
    return {"unpatched": whole, args.method: fewer}, images


def difference(found: Tensor, expected: Tensor) -> float:
    """The length of the difference over the length of what was expected."""
    return ((found - expected).norm() / expected.norm()).item()


def measure(runs: dict[str, Run], models: dict[str, nn.Module], images: Tensor, rounds: int) -> Rows:
    """Rows of the runtime and of PyTorch, all in turns: milliseconds, and gains with a 95 % interval.

    A gain is the median over rounds of the unpatched model's time over this one's in the same round.

    Args:
        runs: in the runtime, by name; the first is the unpatched model's.
        models: in PyTorch, by the names that they have among the runs.
    """
    calls = {name: lambda run=run: run(images) for name, run in runs.items()}
    calls |= {f"{name}, PyTorch": lambda model=model: model(images) for name, model in models.items()}
    times = interleave(calls, rounds, 0.0, lambda: None)
    rows: Rows = {}
    for name, run in runs.items():
        of = next(known for known in models if name.startswith(known))
        rows[name] = {"difference": difference(run(images), models[of](images))}
        for key, end, known in (("", "", True), ("torch_", ", PyTorch", name in models)):
            if known:
                own = times[name + end]
                gains = times["unpatched" + end].ratios(own)
                rows[name] |= {f"{key}ms": 1000 * own.median, f"{key}speedup": statistics.median(gains)}
                rows[name][f"{key}speedup_interval"] = list(bootstrap_interval(gains))
    return rows


def finish(args: argparse.Namespace, rows: Rows, fewer: nn.Module, load: float, **versions: str) -> None:
    """Print the rows, and write them where a file was named."""
    rows[args.method]["share"] = tokenreduce.report(fewer).flops_share
    for name, row in rows.items():
        low, high = row["speedup_interval"]
        gain = f"{row['speedup']:.2f} x ({low:.2f}-{high:.2f})"
        print(f"{name}: {row['ms']:.1f} ms a batch of {args.batch}, {gain};", end=" ")
        if "torch_ms" in row:
            print(f"in PyTorch {row['torch_ms']:.1f} ms, {row['torch_speedup']:.2f} x;", end=" ")
        print(f"relative difference from PyTorch {row['difference']:.1e}")
    print(f"{args.method} leaves {rows[args.method]['share']:.3f} of the multiply-adds")
    if args.json:
        about = {key: getattr(args, key) for key in ABOUT} | {"load_before": load, "environment": environment()}
        about["versions"] = {"torch": torch.__version__, **versions, "timm": timm.__version__}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def load_now() -> float:
    """How many programs waited for the processor in the last minute."""
    return os.getloadavg()[0]
