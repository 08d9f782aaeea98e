"""`LanguageReport`: what entered a language model in the last forward from which tokens left."""

from __future__ import annotations

from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.record import LanguageRecord
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.patching.language_costs import LanguageCosts
from tokenreduce.patching.reporting import Report

MIB = 2**20


class LanguageReport:
    """Images, rows, multiply-adds and bytes of the cache, of the last prompts from which tokens left.

    `encoder` is the report of the vision tower's own patch, or None. `str()` is for people, `to_json()` for machines.
    """

    def __init__(
        self,
        reduction: LanguageReduction,
        record: LanguageRecord | None,
        costs: LanguageCosts,
        encoder: Report | None,
    ) -> None:
        self._reduction, self._record, self._costs, self.encoder = reduction, record, costs, encoder
        self.method, self.options = reduction.reducer.name, reduction.reducer.options()
        self.keep, self.positions = reduction.keep, reduction.positions

    @property
    def units(self) -> tuple[tuple[int, int], ...]:
        """Tokens of each image and video, entered and left."""
        return self._last().units

    @property
    def visual_tokens(self) -> int:
        """Tokens of all images and videos."""
        return sum(entered for entered, _ in self.units)

    @property
    def visual_left(self) -> int:
        """Those of them that are left after the last layer."""
        return sum(left for _, left in self.units)

    @property
    def rows(self) -> tuple[int, int]:
        """Places of the longest prompt, and its rows in the last layer; those in each layer are `layer_rows`."""
        return self._last().rows

    @property
    def layer_rows(self) -> tuple[int, ...]:
        """Rows of the longest prompt in each layer of the language model."""
        return tuple(rows for rows, _ in self._last().layers)

    @property
    def grids(self) -> tuple[tuple[int, ...] | None, ...]:
        """The grid `(H, W)` or `(T, H, W)` of each image and video before tokens left, where it is known."""
        return self._last().grids

    @property
    def prefill_macs(self) -> tuple[int, int] | None:
        """Multiply-adds of the language model, counted as `count_flops` does, and what they would be if nothing had
        left; None where `uncounted` names something.

        Without tables of positions and the head. What the method itself costs is in `count_flops(model, inputs)`.
        """
        last = self._last()
        if self.uncounted:
            return None
        whole = [last.places] * len(last.layers)
        return self._costs.macs(last.prompts, last.layers), self._costs.macs(last.prompts, whole)

    @property
    def prefill_share(self) -> float | None:
        """The first of `prefill_macs` as a share of the second."""
        macs = self.prefill_macs
        return None if macs is None else macs[0] / macs[1]

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Parts of the language model whose work does not follow from its rows: experts, linear attention."""
        return self._costs.unknown

    @property
    def kv_bytes(self) -> int:
        """Bytes of the prompts' keys and values in the cache, without states of linear attention; 0 without a cache."""
        return self._last().kv_bytes[0]

    @property
    def kv_bytes_unpatched(self) -> int:
        """What they would be if nothing had left."""
        return self._last().kv_bytes[1]

    def to_json(self) -> dict[str, Any]:
        """The patch and, where there is one, the last forward as JSON-able values."""
        patch = self._reduction.to_json() | {"positions": self.positions}
        if self._record is None:
            return patch
        return patch | {
            "units": [list(unit) for unit in self.units],
            "visual_tokens": self.visual_tokens,
            "visual_left": self.visual_left,
            "rows": self.rows[0],
            "rows_left": self.rows[1],
            "kv_bytes": self.kv_bytes,
            "kv_bytes_unpatched": self.kv_bytes_unpatched,
            "tokens": list(self._record.tokens),
            "layer_rows": list(self.layer_rows),
            "prefill_share": self.prefill_share,
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        budget = f"{self.method}({options}), keep={self.keep!r}, positions={self.positions!r}"
        if self._record is None:
            return f"{budget}: nothing has left yet; run the model on prompts with images first"
        share = self.visual_left / self.visual_tokens
        where = "are left at the end" if self._reduction.later else "enter the language model"
        places, rows = self.rows
        lines = [
            f"{budget}: {len(self.units)} image{'s' * (len(self.units) != 1)} or videos, {self.visual_tokens} visual "
            f"tokens, {self.visual_left} {where} ({share:.1%})",
            f"rows of the longest of {self._record.prompts} prompts: {places} -> {rows}",
        ]
        if len(set(self.layer_rows)) > 1:
            lines.append(f"rows in each layer: {' '.join(map(str, self.layer_rows))}")
        prefill = self.prefill_share
        counted = f"unknown: {self.uncounted[0]}" if prefill is None else f"{prefill:.1%} of the unpatched ones"
        lines.append(f"multiply-adds of the language model's prefill: {counted}")
        if self.kv_bytes:
            lines.append(f"keys and values: {self.kv_bytes_unpatched / MIB:.3g} -> {self.kv_bytes / MIB:.3g} MiB")
        return "\n".join(lines if self.encoder is None else [*lines, "vision tower:", str(self.encoder)])

    __repr__ = __str__

    def _last(self) -> LanguageRecord:
        if self._record is None:
            raise InvalidValueError(
                "there are no counts: no prompt has lost a token since the model was patched; run it on one with images"
            )
        return self._record
