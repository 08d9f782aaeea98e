"""A patched model of timm in ONNX Runtime: its file, its difference from PyTorch, its speed beside the unpatched one.

    python examples/onnx_export.py                                                     # a DeiT-S with random weights
    python examples/onnx_export.py --model vit_base_patch16_224 --pretrained --method ward --out exported

It needs `pip install "tokenreduce[timm,onnx]"`. The images are noise. This file must not be named onnx.py: Python looks
for modules beside a script first, and `import onnx`, also that in torch.onnx, would find the script.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import nn

import tokenreduce


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224", help="of timm")
    parser.add_argument("--pretrained", action="store_true", help="download the weights; without it they are random")
    parser.add_argument("--method", default="tome")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for the files; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(arguments)


def export(model: nn.Module, images: torch.Tensor, file: Path) -> None:
    """With a free batch. Not optimised here, which takes long for many methods: ONNX Runtime does it when it loads."""
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images,), file, dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False)


def load(file: Path, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else two sessions disturb each other
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each call; they take turns, since no machine is equally fast at all times."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    whole = timm.create_model(args.model, pretrained=args.pretrained).eval()
    models = {"unpatched": whole, args.method: tokenreduce.patch(copy.deepcopy(whole), args.method, flops=args.flops)}
    images = torch.randn(args.batch, 3, *timm.data.resolve_model_data_config(whole)["input_size"][1:])

    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            file = (args.out or Path(folder)) / f"{args.model}_{name}.onnx"
            file.parent.mkdir(parents=True, exist_ok=True)
            export(model, images, file)
            run, expected = load(file, args.threads), model(images)
            rows[name] = {"difference": (run(images) - expected).abs().max().item() / expected.abs().max().item()}
            calls |= {f"{name} torch": lambda m=model: m(images), name: lambda run=run: run(images)}
        taken = in_turns(calls, args.rounds)
    for name, row in rows.items():
        row |= {"ms": taken[name], "torch_ms": taken[f"{name} torch"]}
        row |= {"speedup": taken["unpatched"] / row["ms"], "torch_speedup": taken["unpatched torch"] / row["torch_ms"]}
    rows[args.method]["share"] = tokenreduce.report(models[args.method]).flops_share
    for name, row in rows.items():
        print(f"{name}: {row['ms']:.1f} ms a batch of {args.batch}, {row['speedup']:.2f} x;", end=" ")
        print(f"in PyTorch {row['torch_ms']:.1f} ms, {row['torch_speedup']:.2f} x; difference {row['difference']:.1e}")
    print(f"{args.method} leaves {rows[args.method]['share']:.3f} of the multiply-adds")
    if args.json:
        about = {key: getattr(args, key) for key in ("model", "flops", "batch", "threads", "rounds")}
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "timm": timm.__version__}
        args.json.write_text(json.dumps({**about, "versions": versions, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
