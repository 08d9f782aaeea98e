"""A patched model of timm in ONNX Runtime: its file, its difference from PyTorch, its speed beside the unpatched one.

    python examples/onnx_export.py                                                     # a DeiT-S with random weights
    python examples/onnx_export.py --model vit_base_patch16_224 --pretrained --method ward --out exported

It needs `pip install "tokenreduce[timm,onnx]"`, and runtimes.py beside it. The images are noise. This file must not be
named onnx.py: Python looks for modules beside a script first, and `import onnx`, also that in torch.onnx, would find
the script.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import runtimes
import torch
from torch import Tensor, nn


def export(model: nn.Module, images: Tensor, file: Path) -> None:
    """With a free batch. Not optimised here, which takes long for many methods: ONNX Runtime does it when it loads."""
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images,), file, dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False)


def load(file: Path, threads: int) -> runtimes.Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else two sessions disturb each other
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


@torch.no_grad()
def main(arguments: list[str] | None = None) -> runtimes.Rows:
    args, before = runtimes.parser(__doc__).parse_args(arguments), runtimes.load_now()
    models, images = runtimes.pair(args)
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name, model in models.items():
            file = (args.out or Path(folder)) / f"{args.model}_{name}.onnx"
            file.parent.mkdir(parents=True, exist_ok=True)
            export(model, images, file)
            runs[name] = load(file, args.threads)
        rows = runtimes.measure(runs, models, images, args.rounds)
    runtimes.finish(args, rows, models[args.method], before, onnxruntime=onnxruntime.__version__)
    return rows


if __name__ == "__main__":
    main()
