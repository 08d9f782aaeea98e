"""Train the shipped segmenter and detector on scenes composed of Fashion-MNIST's training photographs.

    python examples/train_scenes.py segmenter --out runs/scenes            # resumes where it stopped
    python examples/train_scenes.py detector --out runs/scenes             # starts from the segmenter's backbone
    python examples/train_scenes.py segmenter --out runs/scenes --finish   # test scenes, once, and the shipped file

The segmenter sees cheap epochs at patch 10 (64 tokens), then some at patch 5 (256 tokens). No token is ever dropped or
merged in training. 5,000 training photographs are held out for the scenes that watch progress; `--finish` alone reads
the test photographs. A checkpoint is written after every epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from training import optimizers, split_photos

from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.shipped import scenes as models

PHASES = {"segmenter": "10:42,5:33", "detector": "5:3"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(PHASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--phases", help="patch size : epochs, comma separated")
    parser.add_argument("--epoch-size", type=int, default=4096, help="scenes in an epoch, all new")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--held-out", type=int, default=500, help="held-out scenes that watch progress")
    parser.add_argument("--finish", action="store_true")
    return parser.parse_args()


def segmenter_loss(model: Any, made: scenes.Scenes) -> Tensor:
    """Cross-entropy of every head, and which garments there are from the class token."""
    images = scenes.normalise(made.images)
    layers = [int(layer) for layer in model.auxiliary_heads]
    indices = [*layers, len(model.backbone.blocks) - 1]
    last, taps = model.backbone.forward_intermediates(images, indices=indices, norm=True)
    coarse = F.interpolate(made.masks[:, None].float(), (32, 32), mode="nearest")[:, 0].long()
    loss = F.cross_entropy(model.upsample(model.predict(taps[-1], model.head), images), made.masks)
    for tokens, head in zip(taps[:-1], model.auxiliary_heads.values(), strict=True):
        loss = loss + 0.4 * F.cross_entropy(model.predict(tokens, head), coarse)
    shown = F.one_hot(made.labels, len(scenes.CLASSES)).amax(1)[:, 1:].float()
    return loss + 0.2 * F.binary_cross_entropy_with_logits(model.backbone.forward_head(last), shown)


def detector_loss(model: Any, made: scenes.Scenes) -> Tensor:
    targets = [made.objects(index) for index in range(len(made))]
    return sum(model(list(made.images / 255), targets).values())


@torch.no_grad()
def segmenter_score(model: Any, made: scenes.Scenes) -> float:
    """mIoU over all classes."""
    count = len(scenes.CLASSES)
    table = torch.zeros(count * count)
    for images, truth in zip(made.images.split(100), made.masks.split(100), strict=True):
        found = model(scenes.normalise(images)).argmax(1)
        table += torch.bincount((truth * count + found).flatten(), minlength=count * count)
    table = table.view(count, count)
    both = table.diagonal()
    return float((both / (table.sum(0) + table.sum(1) - both)).mean())


@torch.no_grad()
def detector_score(model: Any, made: scenes.Scenes) -> float:
    """AP50."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(iou_thresholds=[0.5])
    for start in range(0, len(made), 100):
        index = range(start, min(start + 100, len(made)))
        metric.update(model(list(made.images[start : start + 100] / 255)), [made.objects(i) for i in index])
    return float(metric.compute()["map_50"])


LOSS = {"segmenter": segmenter_loss, "detector": detector_loss}
SCORE = {"segmenter": segmenter_score, "detector": detector_score}


def is_matrix(name: str) -> bool:
    return ".blocks." in f".{name}"


@contextmanager
def faster(model: Any) -> Iterator[None]:
    """Products in bf16, and no fused attention, whose backward takes longer than plain products on a CPU."""
    backbone = next(module for module in model.modules() if hasattr(module, "forward_intermediates"))
    forward = backbone.forward_intermediates

    def in_half(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return tree_map_only(Tensor, Tensor.float, forward(*args, **kwargs))

    backbone.forward_intermediates = in_half
    for block in backbone.blocks:
        block.attn.fused_attn = False
    yield
    del backbone.forward_intermediates
    for block in backbone.blocks:
        block.attn.fused_attn = True


def build(task: str, patch: int) -> Any:
    return models.build_segmenter(patch) if task == "segmenter" else models.build_detector()


def change_patch(state: dict[str, Tensor], patch: int) -> dict[str, Tensor]:
    """Weights for another patch size; the heads of dense predictions start anew."""
    kernel, positions = state["backbone.patch_embed.proj.weight"], state["backbone.pos_embed"]
    grid = [scenes.SIZE // patch] * 2
    kept = {name: value for name, value in state.items() if name.startswith("backbone.")}
    return kept | {
        "backbone.patch_embed.proj.weight": resample_patch_embed(kernel, [patch, patch]),
        "backbone.pos_embed": resample_abs_pos_embed(positions, grid, num_prefix_tokens=1),
    }


def start(args: argparse.Namespace, patch: int) -> Any:
    """A new model; the detector takes the segmenter's backbone."""
    model = build(args.task, patch)
    if args.task == "detector":
        state = torch.load(args.out / "segmenter.pt")["model"]
        prefix = "backbone."
        known = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        model.backbone.backbone.load_state_dict(known)
    return model


def train(args: argparse.Namespace, photos: dict[str, tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    phases = args.phases or PHASES[args.task]
    plan = [int(patch) for part in phases.split(",") for patch in [part.split(":")[0]] * int(part.split(":")[1])]
    path = args.out / f"{args.task}.pt"
    saved = torch.load(path) if path.exists() else {"epoch": 0, "log": [], "seconds": 0.0, "patch": plan[0]}
    held_out = scenes.compose(*photos["val"], args.held_out, seed=0)
    model, patch = start(args, saved["patch"]), saved["patch"]
    if "model" in saved:
        model.load_state_dict(saved["model"])
    opts = optimizers(model, args.lr, is_matrix)
    for opt, state in zip(opts, saved.get("opts", ()), strict=False):
        opt.load_state_dict(state)
    for epoch in range(saved["epoch"], len(plan)):
        if plan[epoch] != patch:
            state, patch = model.state_dict(), plan[epoch]
            model = build(args.task, patch)
            model.load_state_dict(change_patch(state, patch), strict=False)
            opts = optimizers(model, args.lr, is_matrix)
        began = time.time()
        with faster(model):
            loss = run_epoch(args, model, opts, photos["train"], epoch, len(plan))
        score = SCORE[args.task](model.eval(), held_out)
        saved["seconds"] += time.time() - began
        row = {"epoch": epoch, "patch": patch, "loss": loss, "score": score, "seconds": round(saved["seconds"])}
        saved["log"].append(row)
        saved |= {"epoch": epoch + 1, "patch": patch, "model": model.state_dict()}
        saved |= {"opts": [opt.state_dict() for opt in opts], "args": {k: str(v) for k, v in vars(args).items()}}
        torch.save(saved, path)
        print(json.dumps(row), flush=True)


def run_epoch(args: argparse.Namespace, model: Any, opts: list, photos: tuple[Tensor, Tensor], epoch: int, epochs: int):
    model.train()
    total, steps = 0.0, args.epoch_size // args.batch_size
    for step in range(steps):
        made = scenes.compose(*photos, args.batch_size, seed=1 + epoch * steps + step)
        loss = LOSS[args.task](model, made)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = epoch + step / steps
        for opt in opts:
            opt.param_groups[0]["lr"] = args.lr * min(1.0, done) * (1 - done / epochs)
            opt.step()
            opt.zero_grad(set_to_none=True)
        total += loss.item()
    return total / steps


def finish(args: argparse.Namespace, folder: Path) -> None:
    """Score on scenes of the test photographs, once; write the weights in half precision."""
    saved = torch.load(args.out / f"{args.task}.pt")
    model = build(args.task, saved["patch"])
    weights = {name: value.half().contiguous() for name, value in saved["model"].items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    made = scenes.load(2000, "test", folder, seed=1)
    figures = {"test_score": SCORE[args.task](model.eval(), made), "log": saved["log"], "args": saved["args"]}
    (args.out / f"{args.task}.json").write_text(json.dumps(figures, indent=1))
    save_file(weights, str(args.out / f"scene_{args.task}.safetensors"))
    print(f"{args.task}: {figures['test_score']:.4f} on {len(made)} test scenes; files in {args.out}")


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = fashion_mnist.find(args.data_dir)
    if args.finish:
        finish(args, folder)
    else:
        train(args, split_photos(folder))


if __name__ == "__main__":
    main()
