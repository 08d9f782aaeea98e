"""`LanguageCosts`: multiply-adds of a language model's forward, by the rows in each of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokenreduce.patches.shared.weights import has_sides, matrices


@dataclass(frozen=True)
class LanguageCosts:
    """What one row costs: outside of the layers, in each of them, and there with each entry that it attends to.

    Heads, the vision tower and tables of positions are not among it, as they do not depend on what leaves, or are a few
    multiply-adds a row.

    Args:
        unknown: parts whose work does not follow from the number of rows in a way that is known, such as experts that
            the data choose, or states of linear attention.
    """

    outside: int
    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    unknown: tuple[str, ...]

    def macs(self, prompts: int, layers: Sequence[tuple[int, int]]) -> int:
        """Of `prompts`, each with the rows and the entries that they attend to in each layer; the first layer's are
        those that enter."""
        costs = zip(self.rows, self.pairs, layers, strict=True)
        return prompts * (self.outside * layers[0][0] + sum(n * (row + pair * seen) for row, pair, (n, seen) in costs))


def language_costs(language: Any) -> LanguageCosts:
    """The costs read off the modules of a language model."""
    layers, names = list(language.layers), [f"layers.{i}" for i in range(len(language.layers))]
    inside = tuple(matrices(layer) for layer in layers)
    unknown = [name for layer, at in zip(layers, names, strict=True) for name in strange(layer, at)]
    return LanguageCosts(matrices(language) - sum(inside), inside, tuple(map(pair_macs, layers)), tuple(unknown))


def pair_macs(layer: Any) -> int:
    """Multiply-adds for a row and an entry, of scores and of the sum of values; heads of both are equally wide."""
    last = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    return 0 if last is None else 2 * int(last.in_features)


def strange(layer: nn.Module, at: str) -> Iterator[str]:
    """The parts of a layer whose work is not known."""
    if not pair_macs(layer):
        yield f"{at}: no attention among rows"
    for name, module in layer.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and not has_sides(module):
                yield f"{at}.{name}.{own}"
