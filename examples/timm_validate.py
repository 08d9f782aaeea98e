"""timm's own validate.py, or another script of timm's, with models that are patched as soon as they are made.

    python examples/timm_validate.py --method ward --flops 0.6 validate.py /data/imagenet --model deit_small_patch16_224
    python examples/timm_validate.py --method none validate.py ...                              # unpatched, to compare

validate.py is not in timm's wheel: take the file from timm's repository, of the version that you have. It stays as it
is, and all its options work but --torchscript. What comes after its path is for the script. It works for each script
that makes its model by `timm.create_model`, and before that script wraps, compiles or moves the model. For a script
that takes a model's name only from a file of yours, a registered function does the same:

    @timm.models.register_model
    def deit_small_ward(pretrained=False, **kwargs):
        model = timm.create_model("deit_small_patch16_224", pretrained=pretrained, **kwargs)
        return tokenreduce.patch(model, "ward", flops=0.6)
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from unittest import mock

import timm
import timm.models
from torch import nn

import tokenreduce


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ward", help="or none")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("script", type=Path, help="path of validate.py")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="what the script is given")
    return parser.parse_args(arguments)


def patching(create: Callable[..., nn.Module], args: argparse.Namespace, made: list[nn.Module]) -> Callable:
    @wraps(create)
    def create_model(*arguments: object, **named: object) -> nn.Module:
        model = create(*arguments, **named)
        if args.method != "none":
            tokenreduce.patch(model, args.method, flops=args.flops)
        made.append(model)
        return model

    return create_model


def main(arguments: list[str] | None = None) -> list[nn.Module]:
    args = parse(arguments)
    made: list[nn.Module] = []
    create = patching(timm.create_model, args, made)
    # Scripts import the function from one place or the other, when they run.
    with (
        mock.patch.object(timm, "create_model", create),
        mock.patch.object(timm.models, "create_model", create),
        mock.patch.object(sys, "argv", [str(args.script), *args.rest]),
    ):
        runpy.run_path(str(args.script), run_name="__main__")
    if args.method != "none":
        for model in made:
            print(tokenreduce.report(model))
    return made


if __name__ == "__main__":
    main()
