"""`Answering`: one vision-language model on one prompt, in the three parts that are timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.speed.row_limit import language_of, prefill_limit, reduced_call
from tokenreduce.patching.finding import find_language
from tokenreduce.patching.verbs import report


class Answering:
    """A model, a prompt whose images are encoded, and the cache that the prompt left.

    Args:
        prompt: arguments of the model, with one prompt's ids and its images.
        words: how many `steps` says after the first.
    """

    def __init__(self, model: Any, prompt: dict[str, Tensor], words: int) -> None:
        self.model, self.prompt = model, prompt
        _, self.part, self.adapter = find_language(model)
        self.encoded = self.adapter.encoded(self.part, prompt)
        features = [out.pooler_output for out in (self.encoded.get("mm_encoder_outputs") or {}).values()]
        if not features or len(prompt["input_ids"]) != 1:
            raise InvalidValueError("give the inputs of one prompt with its images, as its processor makes them")
        self.images = sum(len(part) for part in features)
        self.visual = sum(len(rows) for part in features for rows in part)
        self.places = prompt["input_ids"].shape[1]
        axes = 3 if self.adapter.rotates_in_3d else 1
        ends = torch.arange(self.places, self.places + words, device=prompt["input_ids"].device)
        self.positions = [place.expand(axes, 1, 1) if axes > 1 else place.expand(1, 1) for place in ends]
        self.cache, self.word = self.prefill()
        self.kv_bytes = bytes_in(self.cache)
        self.reduced = hasattr(self.cache, "kept")

    def encode(self) -> Any:
        """Features of the images."""
        return self.adapter.encoded(self.part, self.prompt)

    def prefill(self) -> tuple[Any, Tensor]:
        """The cache of the prompt, whose images are encoded, and the first word."""
        out = self.model(**self.encoded, use_cache=True, logits_to_keep=1)
        return out.past_key_values, out.logits[:, -1:].argmax(-1)

    def steps(self) -> None:
        """Words one after the other, which are taken out of the cache again."""
        say(self.model, self.cache, self.word, self.positions)


class Limit:
    """The unpatched model on rows that were left: the same calls, but for the images.

    Args:
        called: arguments of the language model.
        rows: of each layer.
        positions: of the words after the first.
    """

    def __init__(self, model: Any, called: dict[str, Any], rows: tuple[int, ...], positions: Sequence[Tensor]) -> None:
        self.model, self.called, self.rows, self.positions = model, called, rows, positions
        self.cache, self.word = self.prefill()

    def prefill(self) -> tuple[Any, Tensor]:
        cache, logits = prefill_limit(self.model, self.called, self.rows)
        return cache, logits[:, -1:].argmax(-1)

    def steps(self) -> None:
        say(self.model, self.cache, self.word, self.positions)


def limit_of(base: Any, one: Answering) -> Limit | None:
    """The limit of a patched model; None where layers have unequal rows and the attention wants a mask of all."""
    if not one.reduced:
        return None
    rows = report(one.model).layer_rows
    if len(set(rows)) > 1 and language_of(base).config._attn_implementation != "sdpa":
        return None
    return Limit(base, reduced_call(one.model, one.encoded), rows, one.positions)


def say(model: Any, cache: Any, word: Tensor, positions: Sequence[Tensor]) -> None:
    """A step of decoding for each of the `positions`. The cache then holds again what it held, so that each call finds
    the same keys and values in every layer. States of linear attention are written in place: they go on from what was
    said before, which takes no more time."""
    before = [dict(vars(layer)) for layer in cache.layers]
    for position in positions:
        out = model(input_ids=word, past_key_values=cache, position_ids=position, use_cache=True)
        word = out.logits[:, -1:].argmax(-1)
    for layer, held in zip(cache.layers, before, strict=True):  # no `crop`, which full windows refuse
        vars(layer).update(held)


def bytes_in(cache: Any) -> int:
    """Bytes of keys and values."""
    held = [x for layer in cache.layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(x.numel() * x.element_size() for x in held if x is not None)
