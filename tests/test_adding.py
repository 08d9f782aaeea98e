"""A method is one file and a family one file and one row: with these in a folder of their own, nothing else is edited,
and the law suite runs on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
FILES = {
    "methods/toy.py": '''
from dataclasses import dataclass
from typing import ClassVar

import tokenreduce
from tokenreduce.reducers.parts.bipartite import match_bipartite


@tokenreduce.register
@dataclass(frozen=True)
class Toy(tokenreduce.Reducer):
    """Merge the tokens that are most alike."""

    name: ClassVar[str] = "toy"
    kind: ClassVar[str] = "merging"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026

    def least(self, n):
        return n - n // 2

    def plan(self, tokens, keep, state=None):
        return match_bipartite(tokens.features, keep)
''',
    "toylib.py": """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, x, bias=None):
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x):
        x = x + self.attend(self.before(x))
        return x + self.down(self.up(self.between(x)).relu())


class ToyViT(nn.Module):
    def __init__(self, width=32, heads=2, depth=4, side=8):
        super().__init__()
        self.side, self.width, self.heads = side, width, heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, side**2, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.places
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
""",
    "patches/toylib/__init__.py": "",
    "patches/toylib/vit.py": """
from toylib import Layer, ToyViT

from tokenreduce.budget.geometry import Geometry

from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.weights import layered_costs


class ReducedToyLayer(ReducedLayer, Layer):
    def attention_line(self, run, x):
        return x + self.attend(self.before(x), run.attention_bias(x))

    def mlp_line(self, x):
        return x + self.down(self.up(self.between(x)).relu())


class ToyAdapter(LayeredAdapter):
    name = "toylib_vit"
    family = "toylib ToyViT"
    reduced = {Layer: ReducedToyLayer}

    def matches(self, module):
        return isinstance(module, ToyViT)

    def layers(self, model):
        return model.layers

    def captures(self, model, layer):
        return {name: (layer.qkv, f"fused_{name}") for name in ("queries", "keys", "values", "mean_keys")}

    def lacks(self, model):
        return {}

    def geometry(self, model):
        costs = layered_costs(model, model.layers, "qkv", model.embed, model.width)
        return Geometry(
            depth=len(model.layers), prefix=1, suffix=0, class_tokens=1, grid=(model.side, model.side),
            width=model.width, heads=model.heads, head_dim=model.width // model.heads, costs=costs,
        )

    def reads(self, model, outer):
        return "protected"


ADAPTER = ToyAdapter()
""",
    "rows/toylib/__init__.py": "",
    "rows/toylib/vit.py": """
import torch
from backbones import Backbone
from toylib import ToyViT


def equal_places(model):
    torch.nn.init.zeros_(model.places)


def make_rows():
    return [
        Backbone(
            "toylib_vit", ToyViT, "layers.3.up", ("out", "down"), equal_places, argument="images",
            tokens_stay_reduced=True,
        )
    ]
""",
    # What copying the files into the package's folders and beside the other rows would do.
    "added.py": """
import sys
from pathlib import Path

sys.path.insert(0, TESTS)
import rows
import tokenreduce.patches
import tokenreduce.reducers.methods

here = Path(__file__).parent
rows.__path__.append(str(here / "rows"))
tokenreduce.patches.__path__.append(str(here / "patches"))
tokenreduce.reducers.methods.__path__.append(str(here / "methods"))
""".replace("TESTS", repr(str(TESTS))),
}
# Every law that has rows and methods, and the toys that it must have run for.
LAWS = {
    "test_nothing_to_remove_changes_nothing": ("toylib_vit-toy", "toylib_vit-kmeans", "timm_vit_qk_norm-toy"),
    "test_merging_identical_tokens_changes_nothing": ("toylib_vit-toy", "toylib_vit-tome", "timm_vit_qk_norm-toy"),
    "test_maps_come_back_whole_in_raster_order": ("toylib_vit-toy", "toylib_vit-gtp", "timm_vit_qk_norm-toy"),
    "test_an_image_does_not_depend_on_its_batch": ("toylib_vit-toy", "toylib_vit-ats", "timm_vit_qk_norm-toy"),
    "test_forwards_do_not_leak_into_each_other": ("toylib_vit-tome", "timm_vit_qk_norm-toy"),
    "test_threads_do_not_disturb_each_other": ("toylib_vit-tome",),
    "test_copies_and_pickles_behave_alike": ("toylib_vit-tome", "timm_vit_qk_norm-toy"),
    "test_protected_tokens_pass_untouched": ("toylib_vit-tome", "timm_vit_qk_norm-toy"),
    "test_training_reaches_what_it_reached_before": ("toylib_vit-tome",),
    "test_compiles_whole_and_once": ("toylib_vit-tome",),
    "test_compatible_says_what_fits": ("toylib_vit",),
    "test_budgets_are_met": ("toylib_vit-0.6",),
    "test_the_same_again_and_alone": ("toy",),
}


def test_a_method_and_a_family_are_found_and_obey_the_laws(tmp_path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    options = ("-p", "added", "-p", "no:cacheprovider", "-vv", "--tb=short", "-m", "not full")
    which = "toylib or (toy and timm_vit_qk_norm) or (toy and test_every_method)"
    files = (TESTS / "laws", TESTS / "reducers" / "test_every_method.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", which, *files],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    passed = set(re.findall(r"::(\w+)\[(\S+)\] PASSED", ran.stdout))
    assert {(law, toy) for law, toys in LAWS.items() for toy in toys} <= passed
