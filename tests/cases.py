"""Inputs for comparing a method with its slow reference: random and adversarial, one image each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("random", "ties", "zeros", "identical")


@dataclass(frozen=True)
class Case:
    """What one layer shows of one image: n image tokens behind `prefix` protected ones, which only `attention` shows.

    "ties": tokens and scores take few values, all exactly representable, so that any summation order finds the ties.
    "zeros": some tokens are zero vectors. "identical": all tokens are the same.
    """

    kind: str
    x: Tensor  # (1, n, 4)
    keys: Tensor  # (1, 2, n, 4); their mean over heads is exact
    values: Tensor  # (1, 2, n, 4)
    class_attention: Tensor  # (1, n)
    scan_output: Tensor  # (1, n, 4)
    time_step: Tensor  # (1, n, 4), positive
    attention: Tensor  # (1, 2, prefix + n, prefix + n), rows sum to 1
    sizes: Tensor | None  # (1, n)
    prefix: int
    grid: tuple[int, int]

    @property
    def n(self) -> int:
        return self.x.shape[1]

    @property
    def mean_keys(self) -> Tensor:
        """`(n, 4)`."""
        return self.keys[0].mean(0)

    @property
    def mass(self) -> list[float]:
        """The sizes as numbers, 1 each where there are none."""
        return [1.0] * self.n if self.sizes is None else self.sizes[0].tolist()

    def inherited(self, kept: list[int], dest: list[int], inherit: bool) -> list[float]:
        """The sizes of the tokens `kept` if others go, with or without those for which they stand."""
        if not inherit:
            return [self.mass[i] for i in kept]
        return [sum(self.mass[i] for i in range(self.n) if dest[i] == m) for m in range(len(kept))]

    def arguments(self, *names: str) -> dict[str, Any]:
        """Arguments for `tokenreduce.plan`: sizes and prefix, and the entries named."""
        return {name: getattr(self, name) for name in ("sizes", "prefix", *names)}


@st.composite
def cases(draw: Any, least: int = 1, most: int = 14, prefixes: tuple[int, ...] = (0, 1, 2, 5)) -> Case:
    """Cases with `least` to `most` image tokens in any grid that holds them exactly, non-square ones too."""
    height = draw(st.integers(1, 4))
    width = draw(st.integers(-(-least // height), max(-(-least // height), most // height)))
    n, prefix, kind = height * width, draw(st.sampled_from(prefixes)), draw(st.sampled_from(KINDS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def vectors(*shape: int) -> Tensor:
        if kind in ("random", "zeros"):
            out = torch.randn(*shape, n, 4, generator=g)
            return out * (torch.rand(*shape, n, 1, generator=g) > 0.4) if kind == "zeros" else out
        labels = torch.randint(0, 3, (n,), generator=g) if kind == "ties" else torch.zeros(n, dtype=torch.long)
        return (torch.nn.functional.one_hot(labels, 4) * 2.0).expand(*shape, n, 4)

    keys = vectors(1, 1).expand(1, 2, n, 4) if kind != "random" else vectors(1, 2)
    total = prefix + n
    if kind in ("random", "zeros"):
        attention = torch.randn(1, 2, total, total, generator=g).softmax(-1)
    else:  # powers of two, equal in every row: column sums and means are exact
        attention = torch.ones(1, 2, total, total) / 2.0 ** (total - 1).bit_length()
    score = torch.rand(1, n, generator=g) if kind == "random" else torch.randint(1, 4, (1, n), generator=g) / 8.0
    sizes = torch.randint(1, 5, (1, n), generator=g).float() if draw(st.booleans()) else None
    scans = vectors(1), vectors(1).abs()
    return Case(kind, vectors(1), keys, vectors(1, 2), score, *scans, attention, sizes, prefix, (height, width))
