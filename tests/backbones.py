"""Backbones of all libraries, one row each: real classes, small random configurations, every parameter perturbed.

The rows of the adapter `patches/LIBRARY/FAMILY.py` are those of `make_rows` in `tests/rows/LIBRARY/FAMILY.py`.
"""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import rows
import torch
from torch import Tensor, nn

import tokenreduce
from tokenreduce.reducers.entries import ATTENTION, SCANS, VIDEO

PATCH, CHANNELS = 4, 3

Inputs = dict[str, Any]
METHODS = tokenreduce.methods("encoder")
FACTS = {method: tokenreduce.describe(method) for method in METHODS}


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in a model's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)


def call(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return list(tensors(model(**inputs)))


def no_change(model: nn.Module) -> None:
    """Positions that are equal as they are."""


@dataclass(frozen=True)
class Backbone:
    """A family's model and how to test it.

    Args:
        build: makes the model; every parameter is perturbed afterwards.
        last: the module of the last layer that sees each of its tokens once, such as "layers.3.mlp.fc1".
        silence: ends of the names of the modules that write into the residual stream; zeroed, layers change nothing.
        equal_positions: makes the positions of all image tokens equal, for the forced-merge oracle; None where that is
            impossible.
        grid: of the image tokens, with a third axis, time, first for videos; the input has PATCH pixels a token and
            side.
        argument: the name of the images among the model's arguments.
        collect: runs the model so that it returns what its layers put out, as maps of the image tokens `(B, N, C)` in
            raster order; None where it cannot.
        also: calls the model in the other ways it has, whose outputs the laws hold for too.
        make_inputs: makes the arguments of images, where they are more than these.
        shares: budgets to test; where layers need all tokens, not much can be saved.
        traceable: whether the library's own model compiles whole and can be exported.
        tokens_stay_reduced: whether an output of the model has the reduced tokens.

    Facts, from which follows what must be refused and which special suites run:
        prefix, suffix: protected tokens.
        class_token: whether one is among them; by default, where there is a prefix.
        lacks: entries of `ENTRIES` that the model cannot show, beyond those that follow from the other facts.
        in_a_row: whether a layer that can reduce follows another.
        auxiliary_heads: whether there are heads for inner layers around the backbone.
        rotary, biased: whether queries and keys are rotated, or logits of attention have a position bias.
        padded: the argument that says which tokens are real, where others only pad.
        unmasked: whether the library's attention takes no mask and is restated.
        map_attention: an attention on maps, with relative positions or windows beside it, which is restated.
        one_size: whether that attention takes maps of the configured size only.
        reads: what follows the layers reads: "protected" tokens only, image "tokens", or "all" of them.
        scans: layers are scans of the tokens in their order, and where in it the protected ones stand: "first" or in
            the "middle". Such a layer has one line, so that what it removes is gone from the next layer on; there is no
            attention; and merging identical tokens changes something, as a convolution sees where a group begins.
        refused_rules: values of `scan_conv` and `scan_gap` that mean nothing to those scans.
    """

    name: str
    build: Callable[[], nn.Module]
    last: str
    silence: tuple[str, ...]
    equal_positions: Callable[[nn.Module], None] | None = no_change
    grid: tuple[int, ...] = (8, 8)
    argument: str = "pixel_values"
    collect: Callable[[nn.Module, Inputs], list[Tensor]] | None = None
    also: Callable[[nn.Module, Inputs], list[Tensor]] | None = None
    outputs: Callable[[nn.Module, Inputs], list[Tensor]] = call
    make_inputs: Callable[[Backbone, Tensor], Inputs] | None = None
    shares: tuple[float, ...] = (0.8, 0.6)
    traceable: bool = True
    tokens_stay_reduced: bool = False
    prefix: int = 1
    suffix: int = 0
    class_token: bool | None = None
    lacks: frozenset[str] = frozenset()
    in_a_row: bool = True
    auxiliary_heads: bool = False
    rotary: bool = False
    biased: bool = False
    padded: str = ""
    unmasked: bool = False
    map_attention: str = ""
    one_size: bool = False
    reads: str = "protected"
    scans: str = ""
    refused_rules: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        return math.prod(self.grid)

    @property
    def merges_exactly(self) -> bool:
        """Whether merging identical tokens changes nothing, once their positions are equal."""
        return self.equal_positions is not None and not self.scans

    @property
    def videos(self) -> bool:
        return len(self.grid) == 3

    @property
    def unseen(self) -> frozenset[str]:
        """The entries that the model cannot show."""
        has_class_token = self.prefix > 0 if self.class_token is None else self.class_token
        return (
            self.lacks
            | ({*ATTENTION, "keys", "queries", "values"} if self.scans else SCANS)
            | ({"grid"} if self.videos else VIDEO)
            | (frozenset() if has_class_token else {"class_attention"})
            | (frozenset() if self.auxiliary_heads else {"auxiliary_logits"})
        )

    def fits(self, method: str) -> bool:
        """Whether the method must run on this model; otherwise it must be refused."""
        facts = FACTS[method]
        seen = "encoder" in facts["places"] and not self.unseen & set(facts["needs"])
        return seen and (self.in_a_row or facts["placement"] != "post")

    @property
    def methods(self) -> list[str]:
        """The methods that fit."""
        return [method for method in METHODS if self.fits(method)]

    @property
    def refuses(self) -> frozenset[str]:
        return frozenset(METHODS) - {*self.methods}

    def images(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Random images, or videos."""
        shape = (batch, CHANNELS, *(side * PATCH for side in self.grid))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def inputs(self, batch: int = 2, seed: int = 0) -> Inputs:
        """The model's arguments for random images."""
        return self.given(self.images(batch, seed))

    def repeated(self, times: tuple[int, ...], batch: int = 2) -> Inputs:
        """Images whose neighbouring patches are identical, `times` along each axis of the grid."""
        cells = [side // t for side, t in zip(self.grid, times, strict=True)]
        x = torch.randn(batch, CHANNELS, *cells, *(PATCH,) * len(cells), generator=torch.Generator().manual_seed(0))
        for axis, t in enumerate(times):
            x = x.repeat_interleave(t, 2 + axis)
        order = [0, 1]
        for axis in range(len(cells)):
            order += [2 + axis, 2 + len(cells) + axis]
        return self.given(x.permute(order).reshape(batch, CHANNELS, *(side * PATCH for side in self.grid)))

    def given(self, images: Tensor) -> Inputs:
        """The model's arguments for these images."""
        return {self.argument: images} if self.make_inputs is None else self.make_inputs(self, images)


@cache
def shared_model(name: str) -> nn.Module:
    """The row's model in eval mode, shared by the tests of a process: leave it unpatched."""
    return new_model(BY_NAME[name])


def new_model(backbone: Backbone) -> nn.Module:
    """A model that has never run: transformers leaves hooks in models whose hidden states were asked for."""
    torch.manual_seed(0)
    model = backbone.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return model


def fresh_model(backbone: Backbone) -> nn.Module:
    return copy.deepcopy(shared_model(backbone.name))


def silenced(model: nn.Module, backbone: Backbone) -> nn.Module:
    """`model` with layers that add nothing to the residual stream."""
    for name, module in model.named_modules():
        if name.endswith(backbone.silence):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return model


def load_rows() -> list[list[Backbone]]:
    """The rows of every adapter: `rows/LIBRARY/FAMILY.py` beside `patches/LIBRARY/FAMILY.py`."""
    files = pkgutil.walk_packages(rows.__path__, "rows.")
    return [importlib.import_module(file.name).make_rows() for file in files if not file.ispkg]


ROWS = load_rows()
BACKBONES = [row for of_one_adapter in ROWS for row in of_one_adapter]
BY_NAME = {backbone.name: backbone for backbone in BACKBONES}
