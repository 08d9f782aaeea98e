"""`LayerTokens`: the tokens that a layer of a running model shows to a reducer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.forward.shown import Shown, averaged
from tokenreduce.forward.state import TokenState
from tokenreduce.reducers.entries import far_away, image_sources, tubelets
from tokenreduce.reducers.tokens import Tokens


class LayerTokens(Tokens):
    """The image tokens of `x (B, prefix + N + suffix, C)` in one layer of a forward.

    Nothing is prepared before a reducer asks for it: between two matrix products whatever is touched comes from slow
    memory, so that at batch 1 preparing costs more than some methods' work.
    """

    _sources: dict[str, Callable[[], Tensor]] | None

    def __init__(self, state: TokenState, shown: Shown, layer: int, x: Tensor) -> None:
        shape = state.reduction.geometry
        self.state, self.shown, self.layer, self.x = state, shown, layer, x
        self.grid, self.prefix, self.suffix, self.depth = state.grid, shape.prefix, shape.suffix, shape.depth
        self.ordered = bool(shape.ordered)
        self.sizes, self.padding, self._sources = state.sizes, None, None
        if state.valid is not None and state.sizes is not None:
            self.padding = state.sizes == 0
            self.sizes = state.sizes.masked_fill(self.padding, 1)

    @property
    def count(self) -> int:
        return self.state.reduction.image_tokens(self.x)

    @property
    def features(self) -> Tensor:  # type: ignore[override]
        return self._image(self.x)

    @property
    def sources(self) -> Mapping[str, Callable[[], Tensor]]:  # type: ignore[override]
        if self._sources is None:
            self._sources = self._make_sources()
        return self._sources

    def _make_sources(self) -> dict[str, Callable[[], Tensor]]:
        state, x, batch = self.state, self.x, self.x.shape[0]
        found: dict[str, Callable[[], Tensor]] = {
            name: (lambda name=name: self._shown(name))  # type: ignore[misc]
            for name in self.shown.entries
        }
        if "queries" in self.shown.entries and "keys" in self.shown.entries:
            found |= self._attention(self.shown.entries["queries"], self.shown.entries["keys"])
        if self.ordered and "mean_keys" not in found:
            found["mean_keys"] = lambda: self.features.float()
        heads = state.reduction.heads
        if heads is not None:
            stream = x[:, self.prefix : x.shape[1] - self.suffix]
            found["auxiliary_logits"] = lambda: heads.auxiliary_logits(self.layer, stream)
        found["origin"] = lambda: state.places.origin(batch, x.device)
        video = self.shown.video
        if video is not None and not state.maps:
            found["pixels"] = lambda: tubelets(*video)
        if state.grid is not None:
            found["positions"] = lambda: state.places.positions(batch, x.device)
        return found

    def _attention(self, queries: Tensor, keys: Tensor) -> dict[str, Callable[[], Tensor]]:
        state, shape = self.state, self.state.reduction.geometry
        attend = self.shown.attend or (lambda q, k: (q, k, state.attention_bias(q, torch.float32)))
        queries, keys, bias = attend(queries, keys)
        image = slice(self.prefix, keys.shape[2] - self.suffix)
        rows = None if self.padding is None else F.pad(self.padding, (self.prefix, self.suffix))
        return image_sources(queries, keys, bias, shape.class_tokens, image, rows)

    def _compute(self, name: str) -> Tensor:
        return self._shown(name) if name in self.shown.entries else super()._compute(name)

    def _shown(self, name: str) -> Tensor:
        full = self.shown.entries[name]
        late = name == "mean_keys" and not self.shown.by_head
        return self._image(averaged(full) if late else full)

    def _image(self, full: Tensor) -> Tensor:
        """The image tokens of a tensor `(..., prefix + N + suffix, d)`."""
        image = full[..., self.prefix : full.shape[-2] - self.suffix, :]
        return image if self.padding is None else far_away(image, self.padding)
