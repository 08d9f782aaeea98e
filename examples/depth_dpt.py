"""Depth by a DPT of transformers, whole and with fewer tokens: its neck reads four layers, each as a full map.

    python examples/depth_dpt.py                            # a small DPT with random weights
    python examples/depth_dpt.py --model Intel/dpt-large --method expedit --flops 0.8
    python examples/depth_dpt.py --model depth-anything/Depth-Anything-V2-Small-hf

The image is noise: the difference printed is no measure of what a trained model loses.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForDepthEstimation, DPTConfig, DPTForDepthEstimation

import tokenreduce


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the model hub, or a folder; default: random weights")
    parser.add_argument("--size", type=int, default=224, help="side of the images of the random model")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.7, help="share of the backbone's multiply-adds left")
    parser.add_argument("--restore", default="auto", help="auto, copy, soft, freeze or delta")
    return parser.parse_args(arguments)


def small_dpt(size: int) -> Any:
    config = DPTConfig(
        image_size=size,
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        backbone_out_indices=[2, 5, 8, 11],
        neck_hidden_sizes=[24, 48, 96, 192],
        fusion_hidden_size=64,
    )
    model = DPTForDepthEstimation(config)
    nn.init.ones_(model.head.head[4].bias)  # random weights close the last ReLU: all depths would be 0
    return model


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.manual_seed(0)
    model = AutoModelForDepthEstimation.from_pretrained(args.model) if args.model else small_dpt(args.size)
    config = model.eval().config
    # The size of the images is known to the vision transformer, which may have a configuration of its own.
    side = getattr(getattr(config, "backbone_config", None), "image_size", None) or config.image_size
    images = {"pixel_values": torch.randn(1, 3, side, side)}

    whole, all_macs = model(**images).predicted_depth, tokenreduce.count_flops(model, images).total
    tokenreduce.patch(model, args.method, flops=args.flops, restore=args.restore)
    fewer, macs = model(**images).predicted_depth, tokenreduce.count_flops(model, images).total
    report = tokenreduce.report(model)

    print(f"depth: {tuple(whole.shape)} unpatched, {tuple(fewer.shape)} patched with {args.method}")
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left")
    print(f"backbone: {report.flops_share:.3f} of its multiply-adds")
    print(f"with neck and head: {macs / 1e9:.2f} of {all_macs / 1e9:.2f} GMACs an image, {macs / all_macs:.3f}")
    print(f"difference of the depths, of their spread: {(fewer - whole).std() / whole.std():.4f}")


if __name__ == "__main__":
    main()
