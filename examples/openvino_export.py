"""A patched model of timm in OpenVINO: its difference from PyTorch, its speed beside the unpatched one, int8 on top.

    python examples/openvino_export.py                                       # a DeiT-S with random weights
    python examples/openvino_export.py --method ward --options rounds=3      # ward has no rule there, its rounds have
    python examples/openvino_export.py --int8                                # needs nncf, too

It needs `pip install "tokenreduce[timm]" openvino`. The images are noise, those that int8 is calibrated on too: give
yours. This file must not be named openvino.py: `import openvino` would find the script that stands beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import timm
import torch
from torch import nn

import tokenreduce


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224", help="of timm")
    parser.add_argument("--pretrained", action="store_true", help="download the weights; without it they are random")
    parser.add_argument("--method", default="tome")
    parser.add_argument("--options", nargs="*", default=[], help="of the method, such as rounds=3")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--int8", action="store_true", help="quantise weights and activations, too")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the models into this folder")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(arguments)


def convert(model: nn.Module, images: torch.Tensor) -> openvino.Model:
    batch = torch.export.Dim("batch")
    return openvino.convert_model(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)))


def quantised(model: openvino.Model, images: torch.Tensor) -> openvino.Model:
    """Weights and activations in int8, with the ranges that these images have."""
    import nncf

    data = nncf.Dataset([image[None].numpy() for image in images])
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER)


def load(model: openvino.Model, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """In single precision: where the processor can do with less, OpenVINO takes less unless it is told."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


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
    whole = timm.create_model(args.model, pretrained=args.pretrained).eval()
    options = {name: int(value) for name, value in (text.split("=") for text in args.options)}
    fewer = tokenreduce.patch(copy.deepcopy(whole), args.method, flops=args.flops, **options)
    images = torch.randn(args.batch, 3, *timm.data.resolve_model_data_config(whole)["input_size"][1:])

    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, model in (("unpatched", whole), (args.method, fewer)):
        converted, expected = convert(model, images), model(images)
        made = {name: converted} | ({f"{name} int8": quantised(converted, images)} if args.int8 else {})
        for kind, graph in made.items():
            run = load(graph, args.threads)
            rows[kind] = {"difference": ((run(images) - expected).norm() / expected.norm()).item()}
            calls[kind] = lambda run=run: run(images)
            if args.out:
                openvino.save_model(graph, args.out / f"{args.model}_{kind.replace(' ', '_')}.xml")
    for name, milliseconds in in_turns(calls, args.rounds).items():
        rows[name]["ms"] = milliseconds
    for name, row in rows.items():
        row["speedup"] = rows["unpatched"]["ms"] / row["ms"]
        print(f"{name}: {row['ms']:.1f} ms a batch of {args.batch}, {row['speedup']:.2f} x;", end=" ")
        print(f"relative difference from PyTorch {row['difference']:.1e}")
    rows[args.method]["share"] = tokenreduce.report(fewer).flops_share
    print(f"{args.method} leaves {rows[args.method]['share']:.3f} of the multiply-adds")
    if args.json:
        about = {key: getattr(args, key) for key in ("model", "flops", "batch", "threads", "rounds")}
        versions = {"torch": torch.__version__, "openvino": openvino.__version__, "timm": timm.__version__}
        args.json.write_text(json.dumps({**about, "versions": versions, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
