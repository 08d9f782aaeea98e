"""Without timm, without transformers, or without both: what is left works, and what is missing is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
import torch, tokenreduce
x = torch.randn(1, 3, 32, 32)
"""
FUNCTIONAL = """
tokens = torch.randn(1, 64, 8)
token_map = tokenreduce.plan(tokens, "ward", keep=32)
assert tokenreduce.restore(token_map, tokenreduce.apply(token_map, tokens)[0]).shape == tokens.shape
assert len(tokenreduce.methods()) >= 24
try:
    tokenreduce.patch(torch.nn.Linear(2, 2), "tome", ratio=0.5)
except ValueError as error:
    print(error)
"""
TORCHVISION = """
from torchvision.models import VisionTransformer
model = VisionTransformer(32, 4, 4, 2, 32, 64).eval()
tokenreduce.patch(model, "tome", ratio=0.5)
assert model(x).isfinite().all() and tokenreduce.report(model).tokens_left == 32
"""
TRANSFORMERS = """
from transformers import ViTConfig, ViTModel
sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=4)
model = ViTModel(ViTConfig(**sizes)).eval()
tokenreduce.patch(model, "tome", ratio=0.5)
assert model(x).last_hidden_state.shape[1] == 33
"""
TIMM = """
import timm
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4).eval()
tokenreduce.patch(model, "tome", ratio=0.5)
assert model(x).isfinite().all() and tokenreduce.report(model).tokens_left == 32
"""


def python(blocked: set[str], *parts: str) -> str:
    code = BLOCK.format(blocked=blocked) + "".join(parts)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_timm() -> None:
    out = python({"timm"}, FUNCTIONAL, TRANSFORMERS)
    assert "Not installed here: timm (pip install 'tokenreduce[timm]')" in out


def test_without_transformers() -> None:
    out = python({"transformers"}, FUNCTIONAL, TIMM)
    assert "Not installed here: transformers (pip install 'tokenreduce[transformers]')" in out
    assert "timm vit" in out


def test_without_both() -> None:
    out = python({"timm", "transformers"}, FUNCTIONAL, TORCHVISION)
    assert "timm (pip install 'tokenreduce[timm]'), transformers (pip install" in out


@pytest.mark.parametrize(
    ("blocked", "name", "sentence"),
    [
        ("transformers", "hf:some/model", r"needs transformers, which is not installed: pip install 'tokenreduce[tran"),
        ("timm", "vit_tiny_patch16_224", r"is a name of timm, which is not installed: pip install 'tokenreduce[timm]'"),
    ],
)
def test_the_command_line_says_what_to_install(blocked: str, name: str, sentence: str) -> None:
    code = f"""
from tokenreduce.lab.shipped.named import load_model
try:
    load_model({name!r}, None, False)
except ValueError as error:
    print(error)
"""
    assert sentence in python({blocked}, code)
