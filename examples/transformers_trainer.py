"""A patched model in the Trainer of transformers: trained with fewer tokens, evaluated with fewer and with all.

    python examples/transformers_trainer.py                  # a small ViT with random weights, on the shipped images
    python examples/transformers_trainer.py --model google/vit-base-patch16-224-in21k --epochs 3

The images are those of Fashion-MNIST that ship with the library, 1,600 to train on and 400 to evaluate: enough to see
that it works, and too few to say what a method does to accuracy. How much faster it is, `tokenreduce bench` says.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import tokenreduce
from tokenreduce.lab.data import fashion_mnist


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the model hub, or a folder; default: random weights")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--images", type=int, default=2000, help="how many of the images; a fifth is for evaluation")
    return parser.parse_args(arguments)


class Images(Dataset):
    """Images as the model takes them: three channels, of its size."""

    def __init__(self, images: Tensor, labels: Tensor, size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = F.interpolate(self.images[index, None], (self.size, self.size), mode="bilinear")[0]
        return {"pixel_values": image.expand(3, -1, -1), "labels": self.labels[index]}


def small_vit() -> Any:
    config = ViTConfig(
        image_size=28, patch_size=4, hidden_size=64, num_hidden_layers=6, num_attention_heads=2, intermediate_size=128
    )
    config.num_labels = 10
    return ViTForImageClassification(config)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    args = parse(arguments)
    set_seed(0)
    named = {"num_labels": 10, "ignore_mismatched_sizes": True}
    model = AutoModelForImageClassification.from_pretrained(args.model, **named) if args.model else small_vit()
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    images = fashion_mnist.normalise(images)
    cut = args.images * 4 // 5
    training = Images(images[:cut], labels[:cut], model.config.image_size)
    evaluation = Images(images[cut : args.images], labels[cut : args.images], model.config.image_size)

    tokenreduce.patch(model, args.method, flops=args.flops)  # before the Trainer, which may wrap the model
    with tempfile.TemporaryDirectory() as folder:
        options = {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 100, "learning_rate": 1e-3}
        options |= {"num_train_epochs": args.epochs, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        trainer = Trainer(
            model=model,
            args=TrainingArguments(folder, **options),
            train_dataset=training,
            eval_dataset=evaluation,
            compute_metrics=accuracy,
        )
        found = {"untrained": trainer.evaluate()["eval_accuracy"]}
        trainer.train()
        fewer = trainer.evaluate()
        report = tokenreduce.report(model)
        tokenreduce.unpatch(model)  # the weights are those of a plain model: save them, or patch with another budget
        whole = trainer.evaluate()
    found |= {"patched": fewer["eval_accuracy"], "unpatched": whole["eval_accuracy"], "share": report.flops_share}
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left; {report.flops_share:.3f} of the MACs")
    print(f"top-1 before training {found['untrained']:.3f}, after it {found['patched']:.3f} with {args.method}")
    print(f"the same weights with all tokens: {found['unpatched']:.3f}")
    return found


if __name__ == "__main__":
    main()
