"""Train a shipped model on Fashion-MNIST: cheap epochs at patch 4 (49 tokens), then a few at patch 2 (196 tokens).

    python examples/train_fashion.py --model fashion_vit --out runs/fashion_vit            # resumes where it stopped
    python examples/train_fashion.py --model fashion_vit --out runs/fashion_vit --finish   # test set, once, and files

No token is ever dropped or merged in training. 5,000 training images are held out to watch progress; the test images
are read by `--finish` only. A checkpoint is written after every epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn
from torch.nn import functional as F
from training import optimizers, split_photos

from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.shipped import fashion_vim, fashion_vit

MODELS = {"fashion_vit": fashion_vit, "fashion_vim": fashion_vim}


def build(args: argparse.Namespace, patch: int) -> nn.Module:
    """The model of random weights, in the sizes that were asked for."""
    sizes = {name: int(value) for name, value in (text.split("=") for text in args.size)}
    return MODELS[args.model].build(patch, **sizes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--phases", default="4:11,2:2", help="patch size : epochs, comma separated")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N", help="of the model, such as depth=8")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only this many training images (a smoke test)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--graph", action="store_true", help="replay a CUDA graph instead of launching every kernel")
    parser.add_argument("--finish", action="store_true")
    return parser.parse_args()


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and shift each by up to two pixels."""
    count, device = len(images), images.device
    flip = (torch.rand(count, generator=generator) < 0.5).to(device)
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = F.pad(images, (2, 2, 2, 2))[:, 0]
    dy, dx = torch.randint(0, 5, (2, count, 1), generator=generator).to(device)
    span = torch.arange(28, device=device)
    shifted = padded[
        torch.arange(count, device=device)[:, None, None], (dy + span)[:, :, None], (dx + span)[:, None, :]
    ]
    return shifted.unsqueeze(1)


def is_matrix(name: str) -> bool:
    """Of the blocks, but for the rates of a scan."""
    return name.startswith(("blocks", "layers")) and name.endswith(".weight") and "dt_proj" not in name


def change_patch(model: nn.Module, state: dict[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """The weights for another patch size; the row of the class token, wherever it is, stays as it is."""
    grid, old = 28 // patch, state["pos_embed"]
    middle = hasattr(model, "class_place")
    was, now = ((old.shape[1] - 1) // 2, grid * grid // 2) if middle else (0, 0)
    front = torch.cat([old[:, was : was + 1], old[:, :was], old[:, was + 1 :]], 1)
    front = resample_abs_pos_embed(front, [grid, grid], num_prefix_tokens=1)
    return state | {
        "patch_embed.proj.weight": resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch]),
        "pos_embed": torch.cat([front[:, 1 : now + 1], front[:, :1], front[:, now + 1 :]], 1),
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    hits = sum(
        int((model(fashion_mnist.normalise(i)).argmax(-1) == t).sum())
        for i, t in zip(images.split(250), labels.split(250), strict=True)
    )
    model.train()
    return hits / len(images)


def graphed(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], args: argparse.Namespace) -> nn.Module:
    """The model, or the graphs of its forward and backward pass for one batch."""
    if not args.graph:
        return model
    example = fashion_mnist.normalise(data[0][: args.batch_size])
    return torch.cuda.make_graphed_callables(model, (example,))


def run_epoch(model, opts, data, schedule, args, generator) -> float:
    images, labels = data
    order = torch.randperm(len(images), generator=generator)
    batches = order[: len(order) // args.batch_size * args.batch_size].split(args.batch_size)
    total = torch.zeros((), device=images.device)
    for step, index in enumerate(batches):
        scale = schedule(step / len(batches))
        index = index.to(images.device)
        inputs = fashion_mnist.normalise(augment(images[index], generator))
        loss = F.cross_entropy(model(inputs), labels[index], label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.param_groups[0]["lr"] = args.lr * scale
            opt.step()
            opt.zero_grad(set_to_none=True)
        total += loss.detach()
    return total.item() / len(batches)


def train(args: argparse.Namespace, data: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.manual_seed(args.seed)
    plan = [int(patch) for part in args.phases.split(",") for patch in [part.split(":")[0]] * int(part.split(":")[1])]
    path = args.out / "checkpoint.pt"
    saved = (
        torch.load(path, map_location=args.device)
        if path.exists()
        else {"epoch": 0, "log": [], "seconds": 0.0, "patch": plan[0]}
    )
    model, patch = None, saved["patch"]
    for epoch in range(saved["epoch"], len(plan)):
        if model is None or plan[epoch] != patch:
            state = model.state_dict() if model else saved.get("model")
            patch = plan[epoch]
            model = build(args, patch).to(args.device)
            if state:
                model.load_state_dict(change_patch(model, state, patch))
            model = graphed(model, data["train"], args)
            opts = optimizers(model, args.lr, is_matrix)
            if saved.get("patch") == patch and "opts" in saved:
                for opt, opt_state in zip(opts, saved["opts"], strict=True):
                    opt.load_state_dict(opt_state)
        start = time.time()
        generator = torch.Generator().manual_seed(1000 * args.seed + epoch)

        def schedule(part: float, epoch: int = epoch) -> float:
            done = (epoch + part) / len(plan)
            return min(1.0, done * len(plan)) * (1 - done)

        loss = run_epoch(model, opts, data["train"], schedule, args, generator)
        row = {"epoch": epoch, "patch": patch, "loss": loss, "val_top1": accuracy(model, *data["val"])}
        saved["seconds"] += time.time() - start
        saved["log"].append(row | {"seconds": round(saved["seconds"])})
        saved |= {"epoch": epoch + 1, "patch": patch, "model": model.state_dict()}
        saved |= {"opts": [opt.state_dict() for opt in opts], "args": {k: str(v) for k, v in vars(args).items()}}
        torch.save(saved, path)
        print(json.dumps(saved["log"][-1]), flush=True)


def finish(args: argparse.Namespace, folder: Path) -> None:
    """Read the test set once, write weights, figures and the stratified 2,000 test images."""
    saved = torch.load(args.out / "checkpoint.pt", map_location="cpu")
    model = build(args, saved["patch"])
    model.load_state_dict(saved["model"])
    images, labels = fashion_mnist.load("test", folder)
    figures = {"test_top1": accuracy(model, images, labels), "log": saved["log"], "args": saved["args"]}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=1))
    save_file({k: v.contiguous() for k, v in saved["model"].items()}, str(args.out / f"{args.model}.safetensors"))
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.nonzero(labels == c)[:, 0] for c in range(10)]
    index = torch.cat([c[torch.randperm(len(c), generator=generator)[:200]] for c in chosen]).sort().values
    subset = args.out / "fashion_mnist_2000"
    subset.mkdir(exist_ok=True)
    fashion_mnist.write_idx(subset / "t10k-images-idx3-ubyte.gz", images[index, 0])
    fashion_mnist.write_idx(subset / "t10k-labels-idx1-ubyte.gz", labels[index].to(torch.uint8))
    print(f"test top-1 {figures['test_top1']:.4f} over {len(labels)} images; files in {args.out}")


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = fashion_mnist.find(args.data_dir)
    if args.finish:
        finish(args, folder)
    else:
        data = split_photos(folder, args.limit)
        train(args, {part: (images.to(args.device), labels.to(args.device)) for part, (images, labels) in data.items()})


if __name__ == "__main__":
    main()
