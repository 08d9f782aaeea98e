"""What each layer bears: the error when it alone reduces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.search.parting import collect, split
from tokenreduce.lab.search.trials import Trials, Variant

KEEPS = (0.9, 0.75, 0.5, 0.25)


def sensitivities(
    model: nn.Module,
    images: Any,
    method: str = "ward",
    keeps: Sequence[float] = KEEPS,
    *,
    resume: str | Path | None = None,
    progress: Progress = lambda fraction, what: None,
    **options: Any,
) -> list[Row]:
    """Mean errors when one layer alone leaves the fraction `keep` of its tokens: rows with the keys `layer`, `keep`,
    `class_error` and, where the model shows its tokens, `token_error`. Layers that cannot reduce have no row.

    Args:
        images: as `calibrate` takes them.
        resume: as in `calibrate`, also the same file.
    """
    tensor, variant = collect(images), Variant(method, options)
    like = next(model.parameters())
    tensor = tensor.to(like.device, like.dtype)
    trials = Trials(model, variant, tensor, split(range(len(tensor))), Journal(resume))
    asked = [(layer, keep) for layer in range(trials.depth) for keep in keeps]
    rows = []
    for done, (layer, keep) in enumerate(asked):
        progress(done / len(asked), f"layer {layer}")
        left = max(1, round(trials.tokens * keep))
        try:
            one = trials.counted(variant, (trials.tokens,) * layer + (left,) * (trials.depth - layer))
            means = trials.errors(one, trials.all).mean(0).tolist()
        except InvalidValueError:
            continue
        rows.append({"layer": layer, "keep": keep, **dict(zip(trials.kinds, means, strict=True))})
    return rows


def draw_sensitivities(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Write a picture of rows, at least one, with a panel for each kind of error, and in it a line for each fraction of
    tokens kept."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("class_error", "token_error") if kind in rows[0]]
    figure = Figure(figsize=(5 * len(kinds), 3.6), layout="constrained")
    keeps = dict.fromkeys(row["keep"] for row in rows)
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for keep in keeps:
            points = [(row["layer"], row[kind]) for row in rows if row["keep"] == keep]
            axis.semilogy(*zip(*points, strict=True), marker="o", label=f"{keep:.0%} kept")
        axis.set(xlabel="the one layer that reduces", ylabel=kind.replace("_", " "))
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(keeps))
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
