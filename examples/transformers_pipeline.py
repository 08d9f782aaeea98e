"""A patched model of transformers in its pipelines: classes of images, or their features.

    python examples/transformers_pipeline.py                                          # a small ViT with random weights
    python examples/transformers_pipeline.py --model google/vit-base-patch16-224 --images cat.jpg dog.jpg
    python examples/transformers_pipeline.py --task image-feature-extraction --model facebook/dinov2-small

Without --images they are noise: the difference printed is then no measure of what a trained model loses. How much
faster it is, `tokenreduce bench` says.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import tokenreduce

TASKS = {"image-classification": AutoModelForImageClassification, "image-feature-extraction": AutoModel}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the model hub, or a folder; default: random weights")
    parser.add_argument("--task", choices=TASKS, default="image-classification")
    parser.add_argument("--images", nargs="+", default=[], help="files; default: four of noise")
    parser.add_argument("--batch", type=int, default=4, help="images in a batch")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    return parser.parse_args(arguments)


def save_small_vit(folder: str) -> str:
    """A folder as `from_pretrained` reads it."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": config.image_size, "width": config.image_size}).save_pretrained(folder)
    return folder


def noise(count: int) -> list[Image.Image]:
    pixels = torch.randint(0, 256, (count, 240, 320, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


def run(pipe: Any, images: list[Image.Image], batch: int) -> torch.Tensor:
    """One row of numbers an image."""
    answers = pipe(images, batch_size=batch)
    if pipe.task == "image-classification":  # the pipeline sorts classes by their scores
        answers = [[one["score"] for one in sorted(answer, key=lambda one: one["label"])] for answer in answers]
        return torch.tensor(answers)
    return torch.tensor([answer[0][0] for answer in answers])  # the class token, which is first


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        name = args.model or save_small_vit(folder)
        model = TASKS[args.task].from_pretrained(name).eval()
        processor = AutoImageProcessor.from_pretrained(name)
    images = [Image.open(Path(file)).convert("RGB") for file in args.images] or noise(4)
    every = {"top_k": model.config.num_labels} if args.task == "image-classification" else {}
    pipe = pipeline(args.task, model=model, image_processor=processor, **every)
    whole = run(pipe, images, args.batch)

    tokenreduce.patch(model, args.method, flops=args.flops)  # the pipeline holds this very model
    fewer = run(pipe, images, args.batch)
    report = tokenreduce.report(model)
    print(f"{args.task} of {len(images)} images: {tuple(whole.shape)} unpatched, {tuple(fewer.shape)} patched")
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left")
    print(f"multiply-adds: {report.flops_share:.3f} of the unpatched model's")
    print(f"relative difference: {(fewer - whole).norm() / whole.norm():.4f}")
    return {"whole": whole, "fewer": fewer, "report": report}


if __name__ == "__main__":
    main()
