"""`Calibration`: what a search chose, how sure that is, and the file that `patch` takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenreduce.budget.schedule import Schedule
from tokenreduce.lab.environment import versions
from tokenreduce.lab.search.gate import LEAST, WORTH, Evidence
from tokenreduce.patching.recorded import FORMAT
from tokenreduce.reducers.registry import create


@dataclass(frozen=True)
class Calibration:
    """A method and a schedule, chosen on unlabelled images: `patch(model, **calibration.arguments)`.

    Args:
        improved: whether they are shown to lose clearly less than the default at the same compute. If not, they are the
            default, unless an `error` was asked for, which was then checked itself.
        verdict: what was found, in words.
        flops_share: multiply-adds as a share of those of the unpatched model, the method's own work included.
        evidence: how the best candidate compared with the default on the images that chose nothing; None where no
            candidate was better on those that chose.
        figures: what was searched, on how many images of how many sources, as JSON-able values.
    """

    method: str
    options: dict[str, Any]
    schedule: Schedule
    improved: bool
    verdict: str
    flops_share: float
    evidence: Evidence | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `patch` takes besides the model."""
        return {"method": self.method, "schedule": self.schedule, **self.options}

    def to_json(self) -> dict[str, Any]:
        """A patch as `save_patch` writes it, with what is known of the choice beside it."""
        evidence = None if self.evidence is None else self.evidence.to_json()
        return {
            "tokenreduce": FORMAT,
            "method": self.method,
            "options": create(self.method, self.options).options(),  # all: a default may change
            "schedule": self.schedule.to_json(),
            "restore": "auto",
            "prop_attn": "auto",
            "calibration": {
                "improved": self.improved,
                "verdict": self.verdict,
                "flops_share": round(self.flops_share, 5),
                "checked": evidence,
                **self.figures,
                "versions": versions(),
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the choice as JSON, which `patch(model, schedule=path)` and `load_patch` take."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    def __str__(self) -> str:
        lines = [f"{self.verdict}", f"{self.method} at {self.flops_share:.1%} of the multiply-adds"]
        if "latency" in self.figures:
            lines.append(told(self.figures["latency"]))
        if self.evidence is not None:
            lines += explain(self.evidence)
        return "\n".join(lines)


def told(latency: dict[str, Any]) -> str:
    """A measured time in words."""
    low, high = latency["interval95"]
    return (
        f"{latency['share']:.1%} of the unpatched model's time (95 % interval {low:.1%} to {high:.1%}), "
        f"{latency['device']}, {latency['threads']} CPU threads, batch {latency['batch_size']}"
    )


def explain(evidence: Evidence) -> list[str]:
    """The figures of a comparison in words."""
    lines = [
        f"on {evidence.sources} sources that chose nothing, errors relative to the default (90 % interval, whose upper "
        f"end is a one-sided 95 % bound): {evidence.overall}",
        f"  both errors: geometric mean {evidence.geometric}, ratio of means {evidence.of_means}; with 99 % confidence "
        f"together below {evidence.bound:.2f}, and {WORTH} is asked for",
    ]
    for kind, (means, geometric) in evidence.kinds.items():
        lines.append(f"  {kind.replace('_', ' ')}: geometric mean {geometric}, ratio of means {means}")
    if evidence.needed is not None and not evidence.better:
        lines.append(f"a gain of this size would show on about {max(evidence.needed, LEAST)} such sources")
    return lines
