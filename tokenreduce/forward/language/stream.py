"""`Stream`: the rows between the layers of a language model, in a forward in which more of them leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.forward.language.held import Held, translated
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import Ended, Removal, plan_removal
from tokenreduce.forward.language.reduction import Keep, LanguageReduction
from tokenreduce.forward.language.units import Unit
from tokenreduce.reducers.contract import Ending


class Stream:
    """What is known of the rows that entered, and of those that are left of them.

    Args:
        reduction: the patch.
        units: images and videos, by the rows that entered.
        valid: `(B, P)`, False for fillers.
        held: what the cache held of the later stages before, by layer.
        past: entries that the first layers had before.
    """

    def __init__(
        self, reduction: LanguageReduction, units: Sequence[Unit], valid: Tensor, held: dict[int, Held], past: int
    ) -> None:
        self.reduction, self.units, self.past, self.before = reduction, units, past, held
        self.entered, self.valid = valid.shape[1], valid
        self.within = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape[0], -1)
        self.back = self.within  # of each row that entered, the one that shows it now
        self.passages: dict[int, Tensor] = {}  # `back` after each stage
        self.noted: Tensor | None = None  # the attention of the last row to all rows, in the layer before
        self.ended: Tensor | None = None  # the prompts that no longer read their images, in the layer before
        self.counts: dict[int, list[int]] = {}  # tokens left of each unit after each stage
        self.held: dict[int, Held] = {}
        self.changed: dict[str, Any] = {}  # arguments of the layers from the last stage on

    def note(self, rows: Tensor) -> None:
        """The attention `(B, entries)` of the last row, in the layer before a stage."""
        self.noted = rows[:, rows.shape[1] - self.within.shape[1] :]  # where that layer is; planning takes it along

    def visual(self) -> Tensor:
        """`(B, P)`: which of the rows are of images."""
        found = torch.zeros_like(self.valid)
        for unit in self.units:
            found[unit.prompt, unit.places] = True
        return found

    def note_flow(self, to_images: Tensor, ending: Ending) -> None:
        """The attention to images `(B, P)` of each row, in the layer before an ending.

        A prompt ends if, on average, neither its text looks at images nor images at anything else.
        """
        visual = self.visual()
        text, to_images = self.valid & ~visual, to_images.to(visual.device)
        of_text, of_images = (
            (to_images.masked_fill(~rows, 0).sum(1) / rows.sum(1)) for rows in (text, visual)
        )  # no rows: not a number, which is below nothing
        self.ended = (of_text < ending.threshold) & (1 - of_images < ending.threshold)

    def _removal(self, keep: Keep | Ending, x: Tensor) -> Removal:
        if not isinstance(keep, Ending):
            return plan_removal(self.reduction.reducer, keep, self.units, x, self.noted)
        ended = [] if self.ended is None else self.ended.tolist()
        return Ended(self.units, ended, (x.shape[0], x.shape[1]), x.device)

    def reduce(self, layer: int, x: Tensor, given: dict[str, Any]) -> Tensor:
        """Let rows leave `x (B, P, C)` before a layer, and change what this and later layers are called with."""
        self.move(x.device)
        removal = self._removal(self.reduction.later[layer], x)
        passage = Passage.of(removal.removed, self.valid, 0)
        x = passage.rows(removal.carry(x))
        left = removal.left(self.units)
        self.units = [unit._replace(places=passage.back[unit.prompt, unit.places]) for unit in left]
        self.counts[layer] = [len(unit.places) for unit in left]
        self.within, self.valid = self.within.gather(1, passage.index), passage.valid
        self.back, self.noted = passage.back.gather(1, self.back), None
        self.passages[layer] = self.back
        self.held[layer] = self.before[layer].then(self.within, self.valid, self.entered)
        self.changed = self.arguments(self.held[layer], passage, given)
        return x

    def move(self, device: torch.device) -> None:
        """Go on there, as the layers do: a model may be on several devices."""
        self.units = [unit.on(device) for unit in self.units]
        self.valid, self.within, self.back = (x.to(device) for x in (self.valid, self.within, self.back))

    def arguments(self, held: Held, passage: Passage, given: dict[str, Any]) -> dict[str, Any]:
        """Those for the rows that are left; positions of the stage before are in what was changed then."""
        before = given | {name: x for name, x in self.changed.items() if name != "attention_mask"}
        changed: dict[str, Any] = {
            "position_embeddings": tuple(_rows_of(table, passage) for table in before["position_embeddings"])
        }
        mask, places = given.get("attention_mask"), before.get("position_ids")
        if mask is not None or held.fillers:  # after a cache there is always one
            changed["attention_mask"] = translated(mask, self.within, held.within, held.valid, self.past)
        if places is not None:
            places = places.to(passage.index.device).expand(len(passage.index), -1)
            changed["position_ids"] = places.gather(1, passage.index)
        return changed

    def restore(self, x: Tensor, layer: int | None = None) -> Tensor:
        """A row for each that entered, of `x (B, P', C)` after `layer`, or after all."""
        stages = [stage for stage in self.passages if layer is None or stage <= layer]
        if not stages:
            return x
        back = self.passages[max(stages)].to(x.device)
        return x.gather(1, back[..., None].expand(-1, -1, x.shape[-1]))


def _rows_of(table: Tensor, passage: Passage) -> Tensor:
    """The rows of `table (B or 1, P, d)` that stay."""
    return passage.rows(table.expand(passage.index.shape[0], -1, -1))


class Later:
    """The masks of a forward in which nothing leaves, after prompts from which rows have left within the model.

    Args:
        held: what the cache holds, by the layer of the stage.
        entries: those of the first layers, with this forward's.
        rows: of this forward.
    """

    def __init__(self, held: dict[int, Held], entries: int, rows: int) -> None:
        self.held, self.entries, self.rows = held, entries, rows
        self._masks: dict[int, Tensor | None] = {}

    def mask(self, layer: int, mask: Tensor | None) -> Tensor | None:
        """The mask for a layer, of that of the first layers."""
        stage = max((stage for stage in self.held if stage <= layer), default=None)
        if stage is None or (mask is None and not self.held[stage].fillers and self.rows == 1):
            return mask
        if stage not in self._masks:
            held = self.held[stage].until(self.entries)
            rows = torch.arange(self.rows, device=held.within.device).expand(held.within.shape[0], -1)
            past = self.entries - self.rows
            self._masks[stage] = translated(mask, rows, held.within, held.valid, past)
        return self._masks[stage]
