"""A Segmenter on a timm vision transformer, whole and with fewer tokens: a linear head or the mask transformer.

    python examples/segment_linear_head.py
    python examples/segment_linear_head.py --head mask --method tome --flops 0.6
    python examples/segment_linear_head.py --model vit_base_patch16_384 --pretrained --size 512

The head has random weights: train it, or load yours, before you patch. The images are noise: the difference printed is
no measure of what a trained model loses.
"""

from __future__ import annotations

import argparse

import timm
import torch

import tokenreduce
from tokenreduce.models.segmenter import LinearSegmenter, MaskSegmenter


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm, with forward_intermediates")
    parser.add_argument("--pretrained", action="store_true", help="download the backbone's weights")
    parser.add_argument("--head", choices=["linear", "mask"], default="linear")
    parser.add_argument("--classes", type=int, default=150)
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
    head = MaskSegmenter if args.head == "mask" else LinearSegmenter
    model = head(backbone, args.classes).eval()
    images = torch.randn(2, 3, args.size, args.size)

    whole, all_macs = model(images), tokenreduce.count_flops(model, images[:1]).total
    tokenreduce.patch(model, args.method, flops=args.flops, restore=args.restore)
    fewer, macs = model(images), tokenreduce.count_flops(model, images[:1]).total
    report = tokenreduce.report(model)

    print(f"logits: {tuple(whole.shape)} unpatched, {tuple(fewer.shape)} patched with {args.method}")
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left")
    print(f"backbone: {report.flops_share:.3f} of its multiply-adds")
    print(f"with the head: {macs / 1e9:.2f} of {all_macs / 1e9:.2f} GMACs an image, {macs / all_macs:.3f}")
    print(f"relative difference of the logits: {(fewer - whole).norm() / whole.norm():.4f}")


if __name__ == "__main__":
    main()
