"""Classes from words alone: a model of OpenCLIP whose image tower processes fewer tokens. Text costs what it did.

    python examples/open_clip_zero_shot.py                                            # a small CLIP, random weights
    python examples/open_clip_zero_shot.py --model ViT-B-16 --pretrained openai --images cat.jpg --classes cat dog

Without --images they are noise: how often the answers agree is then no measure of what a trained model loses. How much
faster a tower is, `tokenreduce.lab.speed.compare` says.
"""

from __future__ import annotations

import argparse
from typing import Any

import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image

import tokenreduce


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="of OpenCLIP, such as ViT-B-16; default: a small one with random weights")
    parser.add_argument("--pretrained", help="its weights, such as openai; they are downloaded")
    parser.add_argument("--images", nargs="+", default=[], help="files; default: eight of noise")
    parser.add_argument("--classes", nargs="+", default=["cat", "dog", "bicycle", "cup"])
    parser.add_argument("--method", default="ward")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the image tower's multiply-adds left")
    return parser.parse_args(arguments)


def small_clip() -> tuple[Any, Any, Any]:
    image = {"layers": 12, "width": 192, "head_width": 64, "patch_size": 16, "image_size": 224}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
    return open_clip.CLIP(128, image, text), image_transform(224, is_train=False), open_clip.SimpleTokenizer()


def load(model: str, pretrained: str | None) -> tuple[Any, Any, Any]:
    clip, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained)
    return clip, transform, open_clip.get_tokenizer(model)


def noise(count: int) -> list[Image.Image]:
    pixels = torch.randint(0, 256, (count, 240, 320, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse(arguments)
    torch.manual_seed(0)
    model, transform, tokenizer = load(args.model, args.pretrained) if args.model else small_clip()
    model.eval()
    files = [Image.open(file).convert("RGB") for file in args.images] or noise(8)
    images = torch.stack([transform(file) for file in files])
    words = model.encode_text(tokenizer([f"a photo of a {name}" for name in args.classes]), normalize=True)

    def classify() -> torch.Tensor:
        features = model.encode_image(images, normalize=True)
        return (model.logit_scale.exp() * features @ words.T).softmax(-1)

    whole = classify()
    tokenreduce.patch(model.visual, args.method, flops=args.flops)  # the tower that reads images
    fewer = classify()
    report = tokenreduce.report(model.visual)
    agree = (whole.argmax(-1) == fewer.argmax(-1)).float().mean().item()

    for file, before, after in zip(args.images or range(len(files)), whole, fewer, strict=True):
        names = [f"{args.classes[p.argmax()]} {p.max():.2f}" for p in (before, after)]
        print(f"image {file}: {names[0]} unpatched, {names[1]} patched")
    print(f"tokens: {report.input_tokens} enter, {report.tokens_left} left")
    print(f"image tower: {report.flops_share:.3f} of its multiply-adds")
    print(f"same class for {agree:.0%} of the images; largest change of a score {(fewer - whole).abs().max():.3f}")
    return {"whole": whole, "fewer": fewer, "report": report}


if __name__ == "__main__":
    main()
