"""`LayerTokens`: the tokens that a layer of a running model shows to a reducer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.attention import image_sources
from tokenreduce.tokens import Tokens, far_away, tubelets

if TYPE_CHECKING:
    from tokenreduce.run import Run


class LayerTokens(Tokens):
    """The image tokens of `x (B, prefix + N + suffix, C)` in one layer of a run.

    Nothing is prepared before a reducer asks for it: between two matrix products whatever is touched comes from slow
    memory, so that at batch 1 preparing costs more than some methods' work.
    """

    _sources: dict[str, Callable[[], Tensor]] | None

    def __init__(self, run: Run, layer: int, x: Tensor) -> None:
        shape = run.reduction.geometry
        self.run, self.layer, self.x = run, layer, x
        self.grid, self.prefix, self.suffix, self.depth = run.grid, shape.prefix, shape.suffix, shape.depth
        self.sizes, self.padding, self._sources = run.sizes, None, None
        if run.valid is not None and run.sizes is not None:
            self.padding = run.sizes == 0
            self.sizes = run.sizes.masked_fill(self.padding, 1)

    @property
    def count(self) -> int:
        return self.x.shape[1] - self.prefix - self.suffix

    @property
    def features(self) -> Tensor:  # type: ignore[override]
        return self._image(self.x)

    @property
    def sources(self) -> Mapping[str, Callable[[], Tensor]]:  # type: ignore[override]
        if self._sources is None:
            self._sources = self._make_sources()
        return self._sources

    def _make_sources(self) -> dict[str, Callable[[], Tensor]]:
        run, x, batch = self.run, self.x, self.x.shape[0]
        found: dict[str, Callable[[], Tensor]] = {
            name: (lambda full=full: self._image(full))  # type: ignore[misc]
            for name, full in run.captured.items()
        }
        if "queries" in run.captured and "keys" in run.captured:
            found |= self._attention(run.captured["queries"], run.captured["keys"])
        if run.reduction.heads is not None:
            heads, stream = run.reduction.heads, x[:, self.prefix : x.shape[1] - self.suffix]
            found["auxiliary_logits"] = lambda: heads.auxiliary_logits(self.layer, stream)
        found["origin"] = lambda: run.places.origin(batch, x.device)
        video = run.video
        if video is not None and not run.maps:
            found["pixels"] = lambda: tubelets(*video)
        if run.grid is not None:
            found["positions"] = lambda: run.places.positions(batch, x.device)
        return found

    def _attention(self, queries: Tensor, keys: Tensor) -> dict[str, Callable[[], Tensor]]:
        run, shape = self.run, self.run.reduction.geometry
        attend = run.attend or (lambda q, k: (q, k, run.attention_bias(q, torch.float32)))
        queries, keys, bias = attend(queries, keys)
        image = slice(self.prefix, keys.shape[2] - self.suffix)
        rows = None if self.padding is None else F.pad(self.padding, (self.prefix, self.suffix))
        return image_sources(queries, keys, bias, shape.class_tokens, image, rows)

    def _compute(self, name: str) -> Tensor:
        full = self.run.captured.get(name)
        return super()._compute(name) if full is None else self._image(full)

    def _image(self, full: Tensor) -> Tensor:
        """The image tokens of a tensor `(..., prefix + N + suffix, d)`."""
        image = full[..., self.prefix : full.shape[-2] - self.suffix, :]
        return image if self.padding is None else far_away(image, self.padding)
