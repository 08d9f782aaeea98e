"""transformers `YolosModel`: detection tokens after the image tokens, positions added between the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.yolos.modeling_yolos import (
    YolosEncoder,
    YolosLayer,
    YolosModel,
    YolosSelfAttention,
    eager_attention_forward,
)

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import close, finish, open_run

from ._unmasked import BiasedSelfAttention, UnmaskedAdapter, UnmaskedLayer


class BiasedYolosSelfAttention(BiasedSelfAttention, YolosSelfAttention):
    eager = staticmethod(eager_attention_forward)


class ReducedYolosLayer(UnmaskedLayer, YolosLayer):
    """`YolosLayer`, reduced."""


class ReducedYolosEncoder(YolosEncoder):
    """The encoder where positions are added between the layers: a token gets those of its representative."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> BaseModelOutput:
        first: Any = self.layer[0]
        reduction, x = first._tokenreduce.reduction, hidden_states
        run = open_run(reduction, x, first.collected, lambda: first.valid(reduction, x), surrounded=True)
        if run is None:
            return super().forward(hidden_states, height, width)
        try:
            assert self.interpolation is not None
            positions = self.interpolation((height, width))
            for index, layer in enumerate(self.layer):
                hidden_states = layer(hidden_states)
                run.check_given(index + 1, hidden_states)
                if index < len(positions):
                    added = followed(run, positions[index].to(hidden_states.device), hidden_states)
                    if run.taps.waiting is None:
                        hidden_states = hidden_states + added
                    else:  # the layer returned all tokens to be collected, and these go on
                        run.taps.add(added)
            restore = reduction.restoring.ends and run.taps.waiting is None
            hidden_states = finish(run, hidden_states, restore)
            return BaseModelOutput(last_hidden_state=hidden_states)
        finally:
            close(run)


def followed(run: Run, table: Tensor, x: Tensor) -> Tensor:
    """The rows of a table of all the input's tokens `(1, prefix + N + suffix, C)` that belong to those of `x`."""
    if not run.maps:
        return table
    shape = run.reduction.geometry
    end = table.shape[1] - shape.suffix
    image = run.rows(table[0, shape.prefix : end], x)[:, 0]
    before, after = (part.expand(x.shape[0], -1, -1) for part in (table[:, : shape.prefix], table[:, end:]))
    return torch.cat([before, image, after], 1)


class TransformersYolos(UnmaskedAdapter):
    name = "transformers_yolos"
    models = (YolosModel,)
    reduced: ClassVar = {YolosLayer: ReducedYolosLayer}
    attentions: ClassVar = {YolosSelfAttention: BiasedYolosSelfAttention}
    containers: ClassVar = {YolosEncoder: ReducedYolosEncoder}
    follows_origin = True

    def suffix(self, model: Any) -> int:
        return model.config.num_detection_tokens

    def refusals(self, model: Any) -> list[str]:
        if type(model.encoder) not in (YolosEncoder, ReducedYolosEncoder):
            return [f"its encoder is {type(model.encoder).__name__}: another tool has changed it"]
        return super().refusals(model)

    def surrounds(self, model: Any) -> Sequence[nn.Module]:
        return [] if model.encoder.interpolation is None else [model.encoder]

    @contextmanager
    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> Iterator[nn.Module]:
        if model.encoder.interpolation is not None:
            raise InvalidValueError("there is no free-slicing limit where positions are added between the layers")
        with super().sliced(model, counts, placement) as model:
            yield model


ADAPTER = TransformersYolos()
