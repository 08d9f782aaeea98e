"""A training loop of accelerate with a patched model, as one process or as several.

    python examples/accelerate_loop.py                             # the shipped model of Fashion-MNIST
    torchrun --nproc-per-node 2 examples/accelerate_loop.py        # the same, shared by two processes

The images are shipped test images: the first accuracies are right, training on them shows that gradients flow. How much
faster it is, `tokenreduce bench` says.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tokenreduce
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.shipped.fashion_vit import fashion_vit


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=1)
    return parser.parse_args(arguments)


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """Over the images of all processes, each counted once."""
    model.eval()
    right = [accelerator.gather_for_metrics(model(images).argmax(-1) == labels) for images, labels in loader]
    return torch.cat(right).float().mean().item()


def train(accelerator: Accelerator, model: nn.Module, optimizer: Any, loader: DataLoader) -> None:
    model.train()
    for images, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    data = TensorDataset(fashion_mnist.normalise(images[: args.images]), labels[: args.images])
    model = fashion_vit()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    loader, shuffled = accelerator.prepare(DataLoader(data, 64), DataLoader(data, 32, shuffle=True))

    whole = accuracy(accelerator, accelerator.prepare_model(model, evaluation_mode=True), loader)
    tokenreduce.patch(model, args.method, flops=args.flops)  # before `prepare`, which wraps it
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    fewer = accuracy(accelerator, wrapped, loader)
    for _ in range(args.epochs):
        train(accelerator, wrapped, optimizer, shuffled)
    trained = accuracy(accelerator, wrapped, loader)
    report = tokenreduce.report(accelerator.unwrap_model(wrapped))
    accelerator.print(f"{accelerator.num_processes} processes, {args.images} images")
    accelerator.print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left", end="; ")
    accelerator.print(f"{report.flops_share:.3f} of the multiply-adds")
    accelerator.print(f"top-1: {whole:.4f} unpatched, {fewer:.4f} patched with {args.method}")
    accelerator.print(f"after training on these images with fewer tokens: {trained:.4f}")
    accelerator.end_training()
    return {"whole": whole, "fewer": fewer, "trained": trained, "report": report}


if __name__ == "__main__":
    main()
