"""Check an installed tokenreduce from outside of the source tree: the wheel (its folder given) or the editable install.

Run twice: once bare, where nothing but torch can be imported, and once with timm.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BARE = """
import importlib.util, sys
MISSING = {"timm", "torchvision", "transformers", "typer", "rich", "safetensors", "matplotlib"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in MISSING else found(name, *rest)
import torch, tokenreduce, tokenreduce.patches
token_map = tokenreduce.plan(torch.randn(2, 16, 8), "tome", keep=8)
assert tokenreduce.apply(token_map, torch.randn(2, 16, 8))[0].shape == (2, 8, 8)
said = []
try:
    tokenreduce.patch(torch.nn.Linear(2, 2), "tome", flops=0.6)
except ValueError as error:
    said.append("Not installed here: timm (pip install 'tokenreduce[timm]')" in str(error))
from tokenreduce.cli import main
try:
    main()
except SystemExit as stop:
    said.append("pip install 'tokenreduce[bench]'" in str(stop))
assert said == [True, True], said
print(tokenreduce.__file__)
"""

WITH_TIMM = """
import timm, torch, tokenreduce
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
model = tokenreduce.patch(fashion_vit(), "tome", flops=0.6)
assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
assert tokenreduce.advise(model, torch.zeros(1, 1, 28, 28)).tokens == 196
from tokenreduce.lab.data import fashion_mnist
assert len(fashion_mnist.load("test", fashion_mnist.SUBSET)[1]) == 2000
from tokenreduce.ops.native import build
assert all(source.exists() for source in build.sources())
print(tokenreduce.__file__)
"""


def main() -> None:
    where = sys.argv[1]
    for name, code in (("bare", BARE), ("with timm", WITH_TIMM)):
        out = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        location = Path(out.splitlines()[-1])
        assert location.is_relative_to(where) if where else "site-packages" not in location.parts, location
        print(f"{'wheel' if where else 'editable'}, {name}: ok ({location.parent.name})")


main()
