"""`ReducedCache`: a cache from whose prompts tokens have left. It counts places of the prompts for everybody but the
language model, and entries for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.held import all_held
from tokenreduce.forward.language.kept import Kept, whole


class ReducedCache(DynamicCache):
    """Stands for `DynamicCache`, whose class is swapped when the first token leaves."""

    kept: Kept
    inside: bool  # the language model of a patched model has it now
    recording: bool = False  # asked to take back later words, by who drafted none together with the prompt

    def get_seq_length(self, layer_idx: int = 0) -> int:
        entries = super().get_seq_length(layer_idx)
        return entries if self.inside else entries + self.kept.missing

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        return (length, offset) if self.inside else (length + self.kept.missing, offset)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if not self.inside:
            raise InvalidValueError(
                "this cache holds the prompt of a reduced model, and fits that model only while it is patched; patch "
                "it again, or encode the prompt anew"
            )
        return super().update(*args, **kwargs)

    def activate_past_recording(self) -> None:
        super().activate_past_recording()
        self.recording = True

    def crop(self, tokens_to_remove: int) -> None:
        entries = super().get_seq_length() - self.kept.columns.shape[1]
        drafted = not entries and not self.recording  # generate crops right after a prompt, if only by 0, if it drafts
        into = drafted or -tokens_to_remove > entries
        kept = self.kept.cut(-tokens_to_remove - entries) if into else self.kept
        super().crop(tokens_to_remove)
        self.kept = kept

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.kept = self.kept.select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.kept = self.kept.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.kept = self.kept.repeat(repeats)

    def reset(self) -> None:
        super().reset()
        for name in ("kept", "inside", "recording"):
            vars(self).pop(name, None)
        self.__class__ = DynamicCache  # type: ignore[assignment]


def reduce_cache(cache: Any, kept: Kept) -> None:
    """Say what a cache holds from now on."""
    cache.__class__ = ReducedCache
    cache.kept, cache.inside, cache.recording = kept, False, False


def held_by(cache: Any) -> Kept | None:
    """What a reduced cache holds; None for all others."""
    return cache.kept if isinstance(cache, ReducedCache) else None


def held_so_far(cache: Any, batch: int, device: torch.device, stages: Iterable[int] = ()) -> Kept:
    """What any cache holds, until its last place, also in the layers from later `stages` on."""
    seen = 0 if cache is None else cache.get_seq_length()
    kept = held_by(cache)
    kept = whole(batch, seen, device) if kept is None else kept.until(seen)
    later = {layer: kept.held.get(layer) or all_held(batch, kept.columns.shape[1], device) for layer in stages}
    return replace(kept, held=later)


def check_cache(cache: Any) -> None:
    """Raise for a cache that cannot hold fewer rows than places."""
    if cache is None or type(cache) in (DynamicCache, ReducedCache):
        return
    static = isinstance(cache, StaticCache)
    why = "holds all tokens, whatever is removed" if static else "was never tried with fewer tokens"
    raise InvalidValueError(f"a {type(cache).__name__} {why}; leave it out, so that the model makes its DynamicCache")


def is_filled(cache: Any) -> bool:
    """Whether a forward has put rows into a cache; with gradient checkpointing layers leave it as it is."""
    return any(getattr(layer, "keys", None) is not None for layer in cache.layers)


def window_of(layer: Any) -> int | None:
    """How far a layer of a cache sees; None: all of it."""
    return layer.sliding_window if getattr(layer, "is_sliding", False) else None


def bytes_of(cache: Cache | None, places: int) -> tuple[int, int]:
    """Bytes of all layers that keep rows, and what they would be if all `places` of the prompts were there."""
    now, whole = 0, 0
    layers: list[Any] = [] if cache is None else [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    for layer in layers:
        if layer.keys is None:  # nothing was put in
            continue
        window = window_of(layer)
        kept = places if window is None else min(places, window - 1)  # the window's last row is the one that comes
        for x in (layer.keys, layer.values):
            now += x.numel() * x.element_size()
            whole += x[:, :, 0].numel() * x.element_size() * kept
    return now, whole
