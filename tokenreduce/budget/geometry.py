"""`Geometry` and `Costs`: what a budget must know of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from tokenreduce.budget.spreading import Counts


@dataclass(frozen=True)
class Costs:
    """MACs of a model as a function of its token count: what each layer costs a token, and a token pair.

    `attention[l]` and `mlp[l]` are MACs a token, `pairs[l]` MACs a pair of tokens; reduction cannot change `fixed`
    (heads) and `per_token` (embedding and what else runs on all image tokens). `uncounted`: names of weights that none
    of these counts.
    """

    fixed: int
    per_token: int
    attention: tuple[int, ...]
    pairs: tuple[int, ...]
    mlp: tuple[int, ...]
    uncounted: tuple[str, ...] = ()

    def macs(self, entered: Counts, left: Counts, protected: int, placement: str) -> int:
        """MACs of the model part when layer l receives `entered[l]` and leaves `left[l]` image tokens."""
        total = self.fixed + self.per_token * entered[0]
        for layer, (n, m) in enumerate(zip(entered, left, strict=True)):
            first = (m if placement == "pre" else n) + protected
            second = (n if placement == "post" else m) + protected
            total += self.attention[layer] * first + self.pairs[layer] * first**2 + self.mlp[layer] * second
        return total

    def first(self, depth: int) -> Costs:
        """Those of a model of the first `depth` layers alone."""
        return replace(self, attention=self.attention[:depth], pairs=self.pairs[:depth], mlp=self.mlp[:depth])


@dataclass(frozen=True)
class Geometry:
    """What a reduction must know of a model: layers, protected tokens, the input's grid, widths and costs.

    `needs_all`: layers that need all tokens in raster order, such as those with windows; tokens are restored before
    them.
    `ordered`: layers scan the tokens in raster order, which what is left must keep, with protected tokens "first" or in
    the "middle" of the image tokens; empty: layers that do not care.
    `follows_origin`: a reduced token must know which input token represents it (rotary embedding, position tables).
    """

    depth: int
    prefix: int
    suffix: int
    class_tokens: int
    grid: tuple[int, ...]
    width: int
    heads: int
    head_dim: int
    costs: Costs
    needs_all: frozenset[int] = frozenset()
    follows_origin: bool = False
    ordered: str = ""

    @property
    def count(self) -> int:
        """Image tokens of an input of the default size."""
        n = 1
        for side in self.grid:
            n *= side
        return n

    @property
    def in_a_row(self) -> bool:
        """Whether what a layer leaves can enter another layer without having to be all tokens again."""
        free = set(range(self.depth)) - self.needs_all
        return any(layer + 1 in free for layer in free)

    @property
    def protected(self) -> int:
        """Prefix and suffix tokens together."""
        return self.prefix + self.suffix


class AuxiliaryHeads(Protocol):
    """A module around the backbone that has heads for the tokens of some inner layers."""

    auxiliary_layers: tuple[int, ...]

    def auxiliary_logits(self, layer: int, tokens: Tensor) -> Tensor:
        """Logits `(B, N, P, K)` of K classes, of P places in each of `tokens (B, N, C)` after `layer`."""
        ...
