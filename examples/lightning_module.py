"""A patched model in a LightningModule: tested with all tokens and with fewer, trained with fewer.

    python examples/lightning_module.py                    # the shipped model of Fashion-MNIST and images of it
    python examples/lightning_module.py --method tome --flops 0.45

The shipped images are test images, so that the accuracies of the first two lines are right for a model that never saw
them. Training on them afterwards shows that gradients flow, no more. How much faster it is, `tokenreduce bench` says.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tokenreduce
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.shipped.fashion_vit import fashion_vit


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    return parser.parse_args(arguments)


class Classifier(lightning.LightningModule):
    """Nothing here knows of tokens: the model in it is patched, or not."""

    def __init__(self, model: nn.Module, rate: float = 1e-4) -> None:
        super().__init__()
        self.model, self.rate = model, rate

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("accuracy", (self.model(batch[0]).argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), self.rate)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    warnings.filterwarnings("ignore", module="lightning")  # of workers and logging intervals
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    data = TensorDataset(fashion_mnist.normalise(images[: args.images]), labels[: args.images])
    loader, shuffled = DataLoader(data, 64), DataLoader(data, 64, shuffle=True)
    module = Classifier(fashion_vit())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}

    def test(tested: Classifier) -> float:
        return trainer.test(tested, loader, verbose=False)[0]["accuracy"]

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=args.epochs, default_root_dir=folder, **quiet)
        whole = test(module)
        tokenreduce.patch(module.model, args.method, flops=args.flops)
        fewer = test(module)
        report = tokenreduce.report(module.model)
        trainer.fit(module, shuffled)
        trained = test(module)
        trainer.save_checkpoint(f"{folder}/patched.ckpt")
        # A checkpoint of a patched model is one of the plain model: it loads into either.
        plain = Classifier.load_from_checkpoint(f"{folder}/patched.ckpt", model=fashion_vit(pretrained=False))
        restored = test(plain)
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left; {report.flops_share:.3f} of the MACs")
    print(f"top-1 of {args.images} images: {whole:.3f} unpatched, {fewer:.3f} patched with {args.method}")
    print(f"after training on them: {trained:.3f} patched, {restored:.3f} with all tokens, from the checkpoint")
    return {"whole": whole, "fewer": fewer, "trained": trained, "restored": restored, "report": report}


if __name__ == "__main__":
    main()
