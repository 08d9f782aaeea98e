"""UPerNet on four layers of a timm vision transformer, whole and with fewer tokens.

    python examples/segment_upernet.py
    python examples/segment_upernet.py --taps 3 5 7 11 --method expedit --flops 0.8
    python examples/segment_upernet.py --model vit_base_patch16_384 --pretrained --size 512 --channels 512

The head has random weights: train it, or load yours, before you patch. Its convolutions cost what they did.
The images are noise: the differences printed are no measure of what a trained model loses.
"""

from __future__ import annotations

import argparse

import timm
import torch

import tokenreduce
from tokenreduce.models.upernet import UPerNet


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm, with forward_intermediates")
    parser.add_argument("--pretrained", action="store_true", help="download the backbone's weights")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--channels", type=int, default=64, help="inside the head")
    parser.add_argument("--taps", type=int, nargs=4, help="layers whose maps the head reads, counted from 0")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.7, help="share of the backbone's multiply-adds left")
    parser.add_argument("--restore", default="auto", help="auto, copy, soft, freeze or delta")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.manual_seed(0)
    backbone = timm.create_model(args.model, pretrained=args.pretrained, img_size=args.size, num_classes=0)
    model = UPerNet(backbone, args.classes, args.channels, args.taps).eval()
    images = torch.randn(2, 3, args.size, args.size)

    def taps() -> list[torch.Tensor]:
        return backbone.forward_intermediates(images, indices=model.taps, norm=True, intermediates_only=True)

    whole, whole_taps, all_macs = model(images), taps(), tokenreduce.count_flops(model, images[:1]).total
    tokenreduce.patch(model, args.method, flops=args.flops, restore=args.restore)
    fewer, fewer_taps, macs = model(images), taps(), tokenreduce.count_flops(model, images[:1]).total
    report = tokenreduce.report(model)

    print(f"logits: {tuple(whole.shape)} unpatched, {tuple(fewer.shape)} patched with {args.method}")
    for layer, before, after in zip(model.taps, whole_taps, fewer_taps, strict=True):
        error, tokens = (after - before).norm() / before.norm(), report.tokens[layer]
        print(f"layer {layer}: map {tuple(after.shape)} of {tokens} tokens, relative difference {error:.4f}")
    print(f"backbone: {report.flops_share:.3f} of its multiply-adds")
    print(f"with the head: {macs / 1e9:.2f} of {all_macs / 1e9:.2f} GMACs an image, {macs / all_macs:.3f}")
    print(f"relative difference of the logits: {(fewer - whole).norm() / whole.norm():.4f}")


if __name__ == "__main__":
    main()
