"""A patched model of timm in OpenVINO: its difference from PyTorch, its speed beside the unpatched one, int8 on top.

    python examples/openvino_export.py                                       # a DeiT-S with random weights
    python examples/openvino_export.py --method ward --options rounds=3      # ward has no rule there, its rounds have
    python examples/openvino_export.py --int8                                # needs nncf, too

It needs `pip install "tokenreduce[timm,openvino]"`, and runtimes.py beside it. The images are noise, those that int8 is
calibrated on too: give yours. This file must not be named openvino.py: `import openvino` would find the script that
stands beside it.
"""

from __future__ import annotations

import openvino
import runtimes
import torch
from torch import Tensor, nn


def convert(model: nn.Module, images: Tensor) -> openvino.Model:
    batch = torch.export.Dim("batch")
    return openvino.convert_model(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)))


def quantised(model: openvino.Model, images: Tensor) -> openvino.Model:
    """Weights and activations in int8, with the ranges that these images have."""
    import nncf

    data = nncf.Dataset([image[None].numpy() for image in images])
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER)


def load(model: openvino.Model, threads: int) -> runtimes.Run:
    """In single precision: where the processor can do with less, OpenVINO takes less unless it is told."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


@torch.no_grad()
def main(arguments: list[str] | None = None) -> runtimes.Rows:
    parser = runtimes.parser(__doc__)
    parser.add_argument("--int8", action="store_true", help="quantise weights and activations, too")
    args, before = parser.parse_args(arguments), runtimes.load_now()
    models, images = runtimes.pair(args)
    runs = {}
    for name, model in models.items():
        converted = convert(model, images)
        made = {name: converted} | ({f"{name} int8": quantised(converted, images)} if args.int8 else {})
        for kind, graph in made.items():
            runs[kind] = load(graph, args.threads)
            if args.out:
                openvino.save_model(graph, args.out / f"{args.model}_{kind.replace(' ', '_')}.xml")
    rows = runtimes.measure(runs, models, images, args.rounds)
    runtimes.finish(args, rows, models[args.method], before, openvino=openvino.__version__)
    return rows


if __name__ == "__main__":
    main()
