"""Prompts whose tokens are hidden by masks: what a model has to equal in which tokens leave before later layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from by_hand import extended, units_of, whole
from prompting import WORDS, Prompt, Row, language_of, shared
from torch import Tensor


class ByMasks:
    """One prompt, its words one after the other; what left at the first forward is hidden ever after.

    `stages` are those of the patch; `choose` takes a unit's rows, the last row's attention to them and a count.
    """

    def __init__(self, row: Row, prompt: Prompt, stages: dict[int, Any], choose: Any, given: Any = None) -> None:
        self.model = copy.deepcopy(shared(row.name))
        self.model.set_attn_implementation("eager")
        self.stages, self.choose = stages, choose
        self.units = [places for places, _ in units_of(row, prompt)]
        with torch.no_grad():
            self.sequence = whole(self.model, row, row.inputs([prompt]) if given is None else given)
        self.gone: dict[int, set[int]] = {}
        self.asked = len(self.sequence.rows)

    def plan(self, layer: int, rows: Tensor, attention: Tensor | None, alive: list[bool]) -> None:
        for i, places in enumerate(self.units):
            keep = self.stages[layer]
            count = max(1, int(len(places) * keep + 1e-9)) if isinstance(keep, float) else min(keep, len(places))
            here = torch.tensor(places)
            kept = self.choose(rows[here], None if attention is None else attention[here], count)
            left = [places[j] for j in kept]
            self.gone.setdefault(layer, set()).update(set(places) - set(left))
            self.units[i] = left

    @torch.no_grad()
    def logits(self) -> Tensor:
        text, n = language_of(self.model), len(self.sequence.rows)
        positions = self.sequence.positions if len(self.sequence.positions) == 1 else self.sequence.positions[:, None]
        x, first = self.sequence.rows[None], not self.gone
        tables = text.rotary_emb(x, positions)
        attention, alive = None, [True] * n
        for number, layer in enumerate(text.layers):
            if number in self.stages and first:
                self.plan(number, x[0], attention, alive)
            for place in self.gone.get(number, ()):
                alive[place] = False
            seen = torch.tensor(alive)[None, :] & torch.ones(n, n).tril().bool() | torch.eye(n).bool()
            mask = torch.zeros(n, n).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
            shown: list[Tensor] = []
            handle = layer.self_attn.register_forward_hook(lambda m, a, out, shown=shown: shown.append(out[1]))
            x = layer(x, attention_mask=mask, position_embeddings=tables, past_key_values=None)
            handle.remove()
            self.map = shown[0][0].mean(0)  # of the layer before the next
            attention = self.map[-1]
        return self.model.lm_head(text.norm(x))[0, -1]

    def greedy(self, steps: int) -> tuple[list[int], Tensor]:
        ids, found = [], []
        for _ in range(steps):
            found.append(self.logits())
            ids.append(int(found[-1][:WORDS].argmax()))
            self.sequence = extended(self.model, self.sequence, ids[-1])
        return ids, torch.stack(found)
