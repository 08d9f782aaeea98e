"""`Report`: what a patch does to a model and did in its last forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.records import Record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.stack import check_cut
from tokenreduce.maps.restoring import undoing
from tokenreduce.maps.token_map import TokenMap, identity


class Report:
    """Tokens left in each layer, and lazily the maps and sizes of the last forward, without gradient.

    `flops_share` is of the model as it is now. Where layers were wrapped or replaced since the last forward, and a
    `flops` budget is spread otherwise now, `outdated` says so: the next forward meets it. Where the next forward is
    refused instead, `refused` is what it says; else it is empty.

    `uncounted` names the weights in layers of other tools whose work `flops_share` leaves out.

    `passed_through` says that so few tokens entered that they cannot meet the budget, and none was removed.

    `str()` is a table for people, `to_json()` the same for machines. Counts are image tokens; `protected` come on top.
    """

    def __init__(self, reduction: Reduction, record: Record | None) -> None:
        self.outdated, self.refused = _next_forward(reduction, record)
        self.passed_through = reduction.passes(record.entered if record is not None else reduction.geometry.count)
        if record is not None and 0 < len(record.counts) < reduction.geometry.depth:
            reduction = reduction.cut(len(record.counts))  # of a model that was cut, or a forward that stopped early
        reduction = as_it_is_now(reduction)
        self._reduction, self._record = reduction, record
        geometry = reduction.geometry
        self.method = reduction.reducer.name
        self.options = reduction.reducer.options()
        self.protected = geometry.protected
        self.input_tokens = record.entered if record is not None else geometry.count
        if record is None and reduction.adaptive:
            raise InvalidValueError(
                f"{self.method} has no budget, so that its counts follow the data: run the model first, then report"
            )
        self.tokens = tuple(record.counts) if record is not None else reduction.counts(geometry.count)
        self.flops_share = reduction.share(self.input_tokens, self.tokens)
        self.uncounted = geometry.costs.uncounted

    @property
    def tokens_left(self) -> int:
        """The fewest image tokens after any layer."""
        return min(self.tokens)

    @property
    def maps(self) -> tuple[tuple[int, TokenMap], ...]:
        """The layer and the map of every reduction of the last forward."""
        return tuple(self._last().maps)

    @property
    def map(self) -> TokenMap:
        """All maps of the last forward composed: from the input's image tokens to those left.

        If the model restores tokens between layers, only the maps after the last restoring are composed.
        """
        return self.map_after(self.maps[-1][0])

    def map_after(self, layer: int) -> TokenMap:
        """The composed map after block `layer`."""
        maps = self._chain(layer)
        if not maps:
            some = self.maps[0][1].dest_or_argmax()
            return identity(some.shape[0], self.input_tokens, some.device)
        composed = maps[0]
        for token_map in maps[1:]:
            composed = composed.compose(token_map)
        return composed

    @property
    def sizes(self) -> Tensor:
        """`(B, M)`: how many input tokens each token stands for, protected tokens left out."""
        return self.sizes_after(self.maps[-1][0])

    def sizes_after(self, layer: int) -> Tensor:
        """`(B, M)`: the sizes after block `layer`."""
        sizes = self._last().sizes
        for token_map in self._chain(layer):
            sizes = token_map.sizes(sizes)
        if sizes is None:
            sizes = torch.ones(self.maps[0][1].batch, self.input_tokens, dtype=torch.float32)
        return sizes

    def restore(self, x: Tensor) -> Tensor:
        """Final image tokens `(B, M, C)` of the last forward spread over all input positions `(B, N, C)`."""
        for token_map in undoing(self._chain(self.maps[-1][0])):
            x = token_map.restore(x)
        return x

    def _chain(self, layer: int) -> list[TokenMap]:
        """The maps between the input, or the last layer that all tokens entered, and `layer`."""
        start = max((at for at in self._reduction.full_layers if at <= layer), default=0)
        return [token_map for at, token_map in self.maps if start <= at <= layer]

    def to_json(self) -> dict[str, Any]:
        """Method, options, schedule, counts and share of MACs as JSON-able values."""
        return self._reduction.to_json() | {
            "input_tokens": self.input_tokens,
            "protected_tokens": self.protected,
            "tokens": list(self.tokens),
            "flops_share": self.flops_share,
            "passed_through": self.passed_through,
            "outdated": self.outdated,
            "refused": self.refused,
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        lines = [
            f"{self.method}({options}): {self.input_tokens} image tokens + {self.protected} protected, "
            f"{self.flops_share:.1%} of the unpatched multiply-adds",
            f"{'layer':>5} {'tokens':>7} {'removed':>8}",
        ]
        if self.passed_through:
            lines.insert(1, f"{self.input_tokens} tokens cannot meet the budget, and all of them passed through")
        if self.refused:
            lines.insert(1, f"the model was changed, and the next forward is refused: {self.refused}")
        elif self.outdated:
            lines.insert(1, "layers were changed after this forward; the next one meets the budget")
        if self.uncounted:
            more = f" and {len(self.uncounted) - 3} more" if len(self.uncounted) > 3 else ""
            lines.insert(1, f"not counted: {', '.join(self.uncounted[:3])}{more}")
        entering = self._reduction.entering(self.input_tokens, self.tokens)
        for layer, (before, after) in enumerate(zip(entering, self.tokens, strict=True)):
            lines.append(f"{layer:>5} {after:>7} {before - after:>8}")
        return "\n".join(lines)

    __repr__ = __str__

    def _last(self) -> Record:
        if self._record is None or not self._record.maps:
            raise InvalidValueError(
                "there are no maps: the model has not run since it was patched, it ran compiled (maps are not "
                "recorded there), or nothing was removed, by its schedule or by a method that decides itself"
            )
        return self._record


def _next_forward(reduction: Reduction, record: Record | None) -> tuple[bool, str]:
    """Whether the next forward of as many tokens has other counts than that of this record, and the sentence with which
    it is refused, if it is."""
    entered = reduction.geometry.count if record is None else record.entered
    try:
        depth = reduction.depth_now()
        if depth < reduction.geometry.depth:
            check_cut(reduction, depth, entered)
        if record is None or reduction.schedule.flops is None:
            return False, ""
        return reduction.counts(record.entered)[: len(record.counts)] != tuple(record.counts), ""
    except InvalidValueError as error:
        return record is not None, str(error)


def as_it_is_now(reduction: Reduction) -> Reduction:
    """The patch with the costs of the layers that its model has now, which may have been wrapped or replaced since;
    as it is where that cannot be read."""
    owner, depth = reduction.owner, reduction.geometry.depth
    backbone = None if owner is None else owner.backbone
    if owner is None or backbone is None:
        return reduction
    costs = reduction.costs_now(backbone)
    if costs is None or len(costs.mlp) < depth:  # of a model that was cut and has not run since
        return reduction
    return replace(reduction, geometry=replace(reduction.geometry, costs=costs.first(depth)))
