"""`Rehearsal`: what a method's own work costs for one image, as the method states it, or counted by dispatch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tokenreduce.budget.counting import count_flops
from tokenreduce.budget.geometry import Geometry
from tokenreduce.maps.kriging import kriging_work
from tokenreduce.maps.restoring import Around, restore_tokens
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.entries import fake_entries
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

Work = dict[tuple[Any, ...], int]
MANY = 512  # tokens; of fewer a rehearsal on random ones takes less time


class Rehearsal:
    """MACs of a reducer for images of `entered` tokens; figures that were counted are remembered in `known`.

    What the method does not state is counted by dispatch: of many tokens on tensors without data, of few, or if the
    method cannot do without data, on random tokens.

    `restoring`: every map is undone once in each forward, in this way, which costs something where the map is dense.
    `heads`: the part of the model that a method asks for auxiliary predictions.
    """

    def __init__(
        self, reducer: Reducer, geometry: Geometry, entered: int, known: Work, restoring: str | None, heads: Any = None
    ) -> None:
        self.reducer, self.geometry, self.entered, self.known = reducer, geometry, entered, known
        self.restoring, self.heads = restoring, heads
        self._device = "meta" if entered > MANY else "cpu"
        self._states: dict[str, Any] = {}  # by device

    def begin(self) -> int:
        """MACs of the state that the method makes of the tokens that enter."""
        if self.reducer.states_work:
            return self.reducer.state_work(self._step(0, self.entered, self.entered))
        return self._counted(("begin", self.entered), self._make_state) if self.reducer.has_state else 0

    def plan(self, layer: int, n: int, keep: int) -> int:
        """MACs of planning and applying one reduction in `layer`, and of undoing it."""
        if self.reducer.states_work:
            undoing = kriging_work(n, keep, self.geometry.width) if self.restoring == "kriging" else 0
            return self.reducer.work(self._step(layer, n, keep)) + undoing + self._auxiliary_work(layer, n)

        def work() -> None:
            tokens = self._tokens(layer, n)
            token_map = self.reducer.plan(tokens, keep, self._state())
            reduced = token_map.apply(tokens.features)
            if self.restoring is not None:
                around = [Around(tokens.features, reduced)]
                restore_tokens(self.restoring, reduced, [token_map], around, 0, 0)

        return self._counted(("plan", self.entered, layer, n, keep), work)

    def decide(self, layer: int, n: int) -> int:
        """MACs of an adaptive method's choice of a count in `layer`."""
        return self._counted(
            ("decide", self.entered, layer, n), lambda: self.reducer.decide(self._tokens(layer, n), self._state())
        )

    def _counted(self, key: tuple[Any, ...], work: Callable[[], Any]) -> int:
        if key not in self.known:
            self.known[key] = self._count(work)
        return self.known[key]

    def _count(self, work: Callable[[], Any]) -> int:
        try:
            return count_flops(work, ()).total
        except Exception:  # whatever it is: on tokens with data it comes again, or not
            if self._device == "cpu":
                raise
        self._device = "cpu"
        return count_flops(work, ()).total

    def _state(self) -> Any:
        if not self.reducer.has_state:
            return None
        if self._device not in self._states:
            count_flops(self._make_state, ())  # counted apart: an outer count must not see it
        return self._states[self._device]

    def _make_state(self) -> None:
        self._states[self._device] = self.reducer.begin(self._tokens(0, self.entered))

    def _step(self, layer: int, n: int, keep: int) -> Step:
        shape = self.geometry
        return Step(
            n,
            keep,
            layer,
            shape.depth,
            width=shape.width,
            heads=shape.heads,
            head_dim=shape.head_dim,
            prefix=shape.prefix,
            suffix=shape.suffix,
            class_tokens=shape.class_tokens,
            grid=self._grid(),
            undone=self.restoring in ("soft", "delta", "kriging"),
            ordered=bool(shape.ordered),
        )

    def _tokens(self, layer: int, n: int) -> Tokens:
        shape, image = self.geometry, slice(self.geometry.prefix, self.geometry.prefix + n)
        generator = torch.Generator("cpu").manual_seed(0) if self._device == "cpu" else None

        def random(*size: int) -> torch.Tensor:
            return torch.randn(1, *size, generator=generator, device=self._device)

        full, features = random(shape.heads, n + shape.protected, shape.head_dim), random(n, shape.width)
        sources = fake_entries(full, shape.class_tokens, image, shape.grid, generator)
        sources["auxiliary_logits"] = lambda: self._auxiliary_logits(layer, features).cpu().float()
        return Tokens(
            features,
            None,
            sources,
            self._grid(),
            shape.prefix,
            shape.suffix,
            layer,
            shape.depth,
            ordered=bool(shape.ordered),
        )

    def _grid(self) -> tuple[int, ...]:
        """A grid of the tokens that enter: of an image of another size only the count is known here, and any full grid
        of it will do."""
        grid = self.geometry.grid
        if self.entered == self.geometry.count:
            return grid
        times = grid[:-2] if self.entered % math.prod(grid[:-2]) == 0 else (1,) * len(grid[:-2])
        cells = self.entered // math.prod(times)
        rows = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
        return *times, rows, cells // rows

    def _auxiliary_work(self, layer: int, n: int) -> int:
        """MACs of the model's auxiliary head on `n` tokens, where the method reads it.

        Of a head that looks at each token alone, two sizes say what all others cost.
        """
        if self.heads is None:
            return 0
        one, all_ = (self._auxiliary_count(layer, count) for count in (1, self.entered))
        return n * one if all_ == self.entered * one else self._auxiliary_count(layer, n)

    def _auxiliary_count(self, layer: int, n: int) -> int:
        features = torch.zeros(1, n, self.geometry.width, device="cpu")
        return self._counted(("auxiliary", layer, n), lambda: self._auxiliary_logits(layer, features))

    def _auxiliary_logits(self, layer: int, features: torch.Tensor) -> torch.Tensor:
        like, layers = next(self.heads.parameters()), self.heads.auxiliary_layers
        # A budget is rehearsed in the layers that were asked for; that these have no head is said afterwards.
        at = layer if layer in layers else layers[0]
        logits: torch.Tensor = self.heads.auxiliary_logits(at, features.to(like.device, like.dtype))
        return logits
