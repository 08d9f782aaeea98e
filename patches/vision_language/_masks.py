"""Masks for the rows and entries that there are inside of a language model, of those that are given for all places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.forward.language.held import translated
from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.run import LanguageRun

SLIDING = "sliding_attention"  # what transformers calls layers with a window, whose caches hold no more than that


def mask_of_places(run: LanguageRun, given: dict[str, Any]) -> Tensor | None:
    """`(B, places)`: that of the prompts, from which a model may have made masks of pairs for its language model."""
    mask = run.mask if run.pairs else given.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def masks_of_prompts(run: LanguageRun, language: Any, given: dict[str, Any], before: Kept, passage: Passage) -> Any:
    """For prompts from which tokens leave, behind what a cache held `before`."""
    if run.pairs:
        return Inside(passage.index, passage.then(before), before.seen, passage.back.shape[1]).masks(given, language)
    mask = mask_of_places(run, given)
    hidden = before.mask(mask if mask is None else mask[:, : before.seen], 0)
    old = torch.ones_like(before.valid) if hidden is None else hidden
    return torch.cat([old, passage.valid], 1).long()


def masks_of_step(run: LanguageRun, language: Any, given: dict[str, Any], before: Kept, past: int, rows: Tensor) -> Any:
    """For rows of which none leaves, after `past` places."""
    places = rows.shape[1]
    if not run.pairs:
        return before.mask(mask_of_places(run, given), past - before.seen + places)
    new = torch.arange(places, device=rows.device).expand(rows.shape[0], -1)
    return Inside(new, before.until(past + places), past, places).masks(given, language)


@dataclass(frozen=True, eq=False)
class Inside:
    """A call of a language model that is given masks of pairs.

    Args:
        rows: `(B, P)`, which of the q places of this call they are.
        kept: what a cache holds after it.
        past: places before this call.
        places: q.
    """

    rows: Tensor
    kept: Kept
    past: int
    places: int

    def masks(self, given: dict[str, Any], language: Any) -> Any:
        """What the language model is called with in the place of the `given` masks: one, or one a kind of layers."""
        masks, cache = given.get("attention_mask"), given.get("past_key_values")
        causal = getattr(language.layers[0].self_attn, "is_causal", True)
        if not isinstance(masks, dict):
            return self.mask(masks, None, causal)
        slides = cache is not None and any(cache.is_sliding)
        window = language.config.sliding_window if slides else None
        return {kind: self.mask(mask, window if kind == SLIDING else None, causal) for kind, mask in masks.items()}

    def mask(self, mask: Tensor | None, window: int | None, causal: bool) -> Tensor | None:
        """Of the layers of one kind, of a `mask (B, 1, q, places)` that ends with the last place; None is what it is to
        the layers: causal, or nothing hidden.

        Args:
            window: how far back a cache of these layers holds entries, and one more.
        """
        if mask is None and not self.kept.fillers and self.places == 1:
            return None
        every = self.past + self.places
        if mask is None and not causal:
            mask = torch.ones(1, 1, self.places, every, dtype=torch.bool, device=self.rows.device)
        before = self.kept.columns.shape[1] - self.rows.shape[1]
        first = 0 if window is None else max(0, before - window + 1)
        columns, valid = self.kept.columns[:, first:], self.kept.valid[:, first:]
        if mask is None:
            return translated(None, self.rows, columns, valid, self.past)
        columns = columns - (every - mask.shape[-1])  # where a window has moved on it does not begin at the first place
        return translated(mask, self.rows, columns.clamp_min(0), valid & (columns >= 0), self.past)
