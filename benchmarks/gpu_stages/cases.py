"""Models, batches and arms of the table. Counts are resolved beforehand (`gpu.py --resolve`): searching them takes
seconds of the host's time for each model and method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import tokenreduce
from gpu_stages.session import Session
from tokenreduce.lab.arms import Arm
from tokenreduce.patching.finding import reduction_of

COUNTS = Path(__file__).parent / "counts.json"
FLOPS = 0.6
METHODS = ("tome", "ward", "evit", "pitome", "topk")
ROUNDS = "ward(rounds=3)"  # of the counts of `ward`


@dataclass(frozen=True)
class Case:
    """A model at a size of square images and a batch."""

    model: str
    side: int
    batch: int


DEIT, DEIT_B, VIT_L, DINO = (
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_large_patch14_dinov2",
)
# Those that decide whether the library is fast enough come first: a run may be cut off.
CASES = (
    Case(DEIT, 224, 256),
    Case(DEIT, 224, 32),
    Case(VIT_L, 224, 32),
    Case(DINO, 518, 32),
    Case(DINO, 518, 1),
    Case(DEIT, 224, 1),
    Case(VIT_L, 224, 1),
    Case(VIT_L, 224, 256),
    Case(DEIT_B, 224, 32),
)
TINY = Case("vit_tiny_patch16_224", 64, 2)
TINY_KEPT = (16, 12, 12, 9, 9, 9, 6, 6, 6, 6, 6, 6)


@lru_cache(maxsize=8)
def network(name: str, side: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, made on its device: speed depends on no weight."""
    torch.manual_seed(0)
    with device:
        return timm.create_model(name, img_size=side, num_classes=10).eval().to(dtype)


def model_of(session: Session, case: Case) -> tuple[nn.Module, Tensor]:
    """The case's model and its images."""
    case = TINY if session.tiny else case
    net = network(case.model, case.side, session.device, session.dtype)
    torch.manual_seed(0)
    return net, torch.randn(case.batch, 3, case.side, case.side, device=session.device, dtype=session.dtype)


def arm_of(session: Session, case: Case, method: str) -> Arm:
    """The method at `FLOPS`, as the counts that were resolved."""
    case = TINY if session.tiny else case
    options = {"rounds": 3} if method == ROUNDS else {}
    method = method.partition("(")[0]
    counts = TINY_KEPT if session.tiny else json.loads(COUNTS.read_text())[case.model][method]
    before = ((case.side // (14 if case.model == DINO else 16)) ** 2, *counts)
    kept = {layer: count for layer, count in enumerate(counts) if count < before[layer]}
    return Arm(method, **options, schedule=tokenreduce.Schedule.keep(kept))


def resolve() -> None:
    """Write the counts anew."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, side in {case.model: case.side for case in CASES}.items():
        with torch.device("meta"):
            net = timm.create_model(name, img_size=side).eval()
        patches = (side // net.patch_embed.patch_size[0]) ** 2
        for method in METHODS:
            tokenreduce.patch(net, method, flops=FLOPS)
            found.setdefault(name, {})[method] = list(reduction_of(net).counts(patches))
    rows = (
        f' "{name}": {{\n' + ",\n".join(f'  "{method}": {counts}' for method, counts in methods.items()) + "\n }"
        for name, methods in found.items()
    )
    COUNTS.write_text("{\n" + ",\n".join(rows) + "\n}\n")
