"""`Search`: from candidates to a choice that is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.bars import At, descend, lowest
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.curves import Curve, grid
from tokenreduce.lab.search.gate import LEAST, Evidence, compare
from tokenreduce.lab.search.greedy import KEEPS, greedy
from tokenreduce.lab.search.halving import Ranked, halve, rank, rounds, survivors
from tokenreduce.lab.search.parting import Parts
from tokenreduce.lab.search.proposing import propose
from tokenreduce.lab.search.trials import Candidate, Trials, Variant


@dataclass
class Search:
    """What is searched and how; `progress` gets the fraction that is done.

    Args:
        variants: methods with options, the default first.
        trials: candidates that Optuna proposes.
        layerwise: whether the greedy search for counts takes part.
    """

    variants: Sequence[Variant]
    parts: Parts
    trials: int
    layerwise: bool
    seed: int
    progress: Callable[[float, str], object]
    done: int = field(default=0, init=False)
    expected: int = field(default=1, init=False)  # images that candidates run on, in all
    tried: int = field(default=0, init=False)

    def tell(self, what: str, images: int) -> None:
        """Takes note of images that a candidate had."""
        self.done += images
        self.progress(min(1.0, self.done / self.expected), what)

    def at(self, trials: Trials, flops: float) -> Calibration:
        """The choice at a share of the multiply-adds."""
        default = trials.own(self.variants[0], flops)
        best = self.best(trials, default, flops)
        evidence = None if best is None else self.check(trials, best, default)
        improved = evidence is not None and evidence.better
        chosen = best if best is not None and improved else default
        return self.result(trials, chosen, improved, self.verdict(best, evidence), evidence, best)

    def below(self, trials: Trials, error: float) -> Calibration:
        """The choice with the least compute whose error stays below a bar."""

        def own(level: float) -> Candidate:
            return trials.own(self.variants[0], level)

        level = lowest(trials, self.parts, error, own)
        best = self.best(trials, own(level), level)
        at: At = own if best is None else lambda share: again(trials, best, share)
        chosen = descend(trials, self.parts, error, at)
        bounds = f"mean errors stay below {error} with 95 % confidence on images that chose nothing"
        evidence = None if best is None else self.check(trials, chosen, own(chosen.share))
        return self.result(trials, chosen, evidence is not None and evidence.better, bounds, evidence, best)

    def best(self, trials: Trials, default: Candidate, flops: float) -> Candidate | None:
        """The best candidate on the images that choose; None if the default is as good there."""
        self.done, self.expected = 0, self.work(trials)
        candidates = self.candidates(trials, default, flops)
        self.tried = len(candidates)
        ranked = halve(trials, default, candidates, self.parts.choose) if candidates else []
        return ranked[0].candidate if ranked and ranked[0].score < 0 else None

    def candidates(self, trials: Trials, default: Candidate, flops: float) -> list[Candidate]:
        """All that meet the budget; what a method or a shape cannot do is left out."""
        few = rounds(self.parts.choose)[0]

        def shaped(variant: Variant, curve: Curve) -> Candidate:
            return trials.shaped(variant, curve, flops)

        def judge(candidate: Candidate) -> float:
            return rank(trials, default, [candidate], few)[0].score

        found = [made for variant in self.variants for made in self.of_variant(trials, variant, flops)]
        if self.layerwise:
            ranked: list[Ranked] = rank(trials, default, found, few)
            variant = ranked[0].candidate.variant if ranked else self.variants[0]
            curve = greedy(trials, variant, default, few)
            found += [] if curve is None else attempt(lambda: shaped(variant, curve))
        if self.trials:
            found += propose(self.variants, trials.depth, self.trials, self.seed, shaped, judge)
        return list({(str(one.variant), one.counts): one for one in found}.values())

    def of_variant(self, trials: Trials, variant: Variant, flops: float) -> list[Candidate]:
        """The method's own shape, unless it is the default, and the grid."""
        own = [] if variant == self.variants[0] else attempt(lambda: trials.own(variant, flops))
        return own + [
            made for curve in grid(trials.depth) for made in attempt(partial(trials.shaped, variant, curve, flops))
        ]

    def work(self, trials: Trials) -> int:
        """About how many images candidates will run on."""
        stages, parts = rounds(self.parts.choose), self.parts
        count = len(self.variants) * (len(grid(trials.depth)) + 1) + self.trials
        kept = survivors(count, len(stages))
        images = sum(n * parts.count(some) for n, some in zip(kept, stages, strict=True))
        few = parts.count(stages[0])
        # What the greedy search ranks and Optuna judges is remembered, but told all the same.
        return images + few * (self.layerwise * (count + trials.depth * len(KEEPS) // 2) + 2 * self.trials) + 2 * few

    def check(self, trials: Trials, best: Candidate, default: Candidate) -> Evidence:
        """How the best candidate does on the images that chose nothing."""
        errors, those = (trials.errors(one, self.parts.check) for one in (best, default))
        return compare(errors, those, self.parts.sources, trials.kinds)

    def verdict(self, best: Candidate | None, evidence: Evidence | None) -> str:
        """What was found, in words."""
        kept = "the default is as good, keep it"
        if best is None or evidence is None:
            return f"{kept}: none of {self.tried} candidates was better on the images that choose"
        if evidence.better:
            return f"{best.variant} with another schedule beats the default on images that chose nothing"
        if evidence.sources < LEAST:
            return f"{kept}: {evidence.sources} sources are too few to check a choice, give {2 * LEAST} or more in all"
        return f"{kept}: that {best.variant} with another schedule is better is not shown"

    def result(
        self,
        trials: Trials,
        chosen: Candidate,
        improved: bool,
        verdict: str,
        evidence: Evidence | None,
        best: Candidate | None,
    ) -> Calibration:
        figures: dict[str, Any] = {
            "model": type(trials.base).__name__,
            "layers": trials.depth,
            "image_tokens": trials.tokens,
            "tokens": list(chosen.counts),
            "default": str(self.variants[0]),
            "best_candidate": None if best is None else best.to_json(),
            "candidates": self.tried,
            "methods": [str(variant) for variant in self.variants],
            "optuna_trials": self.trials,
            "images": {"choose": self.parts.count(self.parts.choose), "check": self.parts.count(self.parts.check)},
            "sources": self.parts.groups,
            "seed": self.seed,
        }
        variant = chosen.variant
        return Calibration(
            variant.method, variant.options, chosen.schedule, improved, verdict, chosen.share, evidence, figures
        )


def again(trials: Trials, candidate: Candidate, flops: float) -> Candidate:
    """The same method and shape at another share."""
    if candidate.curve is None:
        return trials.own(candidate.variant, flops)
    return trials.shaped(candidate.variant, candidate.curve, flops)


def attempt(make: Callable[[], Candidate]) -> list[Candidate]:
    """What `make` makes, if the method can."""
    try:
        return [make()]
    except InvalidValueError:
        return []
