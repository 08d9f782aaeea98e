"""torchvision's Mask R-CNN on the simple feature pyramid of a timm vision transformer, whole and with fewer tokens.

    python examples/detect_mask_rcnn.py
    python examples/detect_mask_rcnn.py --model vit_base_patch16_224 --pretrained --size 512 --method tome

Pyramid and detector have random weights: train them, or load yours, before you patch. The images are noise: the
differences printed are no measure of what a trained model loses.
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import tokenreduce
from tokenreduce.models.pyramid import SimpleFeaturePyramid


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm; patches of 8, 16 or 32 pixels")
    parser.add_argument("--pretrained", action="store_true", help="download the backbone's weights")
    parser.add_argument("--classes", type=int, default=91, help="background included")
    parser.add_argument("--channels", type=int, default=256, help="of the pyramid")
    parser.add_argument("--size", type=int, default=224, help="shorter side inside the model, the longer is free")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.7, help="share of the backbone's multiply-adds left")
    parser.add_argument("--restore", default="auto", help="auto, copy, soft, freeze or delta")
    return parser.parse_args(arguments)


def mask_rcnn(backbone: Any, classes: int, channels: int, size: int, **arguments: Any) -> MaskRCNN:
    pyramid = SimpleFeaturePyramid(backbone, channels)
    patch, names = backbone.patch_embed.patch_size[0], [f"{scale:g}x" for scale in pyramid.scales]
    anchors = tuple((round(8 * patch / scale),) for scale in pyramid.scales)
    return MaskRCNN(
        pyramid,
        classes,
        min_size=size,
        max_size=2 * size,
        size_divisible=2 * patch,  # so that the coarsest map, of half the grid, covers all of it
        image_mean=backbone.pretrained_cfg["mean"],
        image_std=backbone.pretrained_cfg["std"],
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
        **arguments,
    )


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    torch.manual_seed(0)
    backbone = timm.create_model(args.model, pretrained=args.pretrained, num_classes=0, dynamic_img_size=True)
    model = mask_rcnn(backbone, args.classes, args.channels, args.size).eval()
    images = [torch.rand(3, args.size, args.size), torch.rand(3, args.size, args.size * 5 // 4)]
    batch = model.transform(images)[0].tensors
    whole, all_macs = model.backbone(batch), tokenreduce.count_flops(model.backbone, batch[:1]).total
    tokenreduce.patch(model, args.method, flops=args.flops, restore=args.restore)
    fewer, macs = model.backbone(batch), tokenreduce.count_flops(model.backbone, batch[:1]).total
    share, [first, *_] = tokenreduce.report(model).flops_share, model(images)

    for name, before in whole.items():
        error = (fewer[name] - before).norm() / before.norm()
        print(f"{name}: map {tuple(fewer[name].shape)} patched with {args.method}, relative difference {error:.4f}")
    print(f"backbone: {share:.3f} of its multiply-adds")
    print(f"with the pyramid: {macs / 1e9:.2f} of {all_macs / 1e9:.2f} GMACs an image, {macs / all_macs:.3f}")
    print(f"first image: boxes {tuple(first['boxes'].shape)}, masks {tuple(first['masks'].shape)}")


if __name__ == "__main__":
    main()
