"""`Search`: from candidates to a choice that is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.bars import LEVELS, At, descend, lowest
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.clocking import QUICK, SURE, Clock, TimeShare
from tokenreduce.lab.search.curves import Curve, grid
from tokenreduce.lab.search.gate import LEAST, Evidence, compare
from tokenreduce.lab.search.greedy import KEEPS, greedy
from tokenreduce.lab.search.halving import FINAL, Ranked, halve, rank, rounds, survivors
from tokenreduce.lab.search.hurrying import NEIGHBOURS, level_of, lowest_reachable, most_compute, settle
from tokenreduce.lab.search.parting import Parts
from tokenreduce.lab.search.proposing import propose
from tokenreduce.lab.search.trials import Candidate, Trials, Variant

ShareOf = Callable[[Variant], float]  # the share of the multiply-adds at which a method is tried


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

    def start(self, expected: int) -> None:
        """Begins to count what is done of `expected` images."""
        self.done, self.expected = 0, expected

    def at(self, trials: Trials, flops: float) -> Calibration:
        """The choice at a share of the multiply-adds."""
        self.start(self.work(trials))
        default = trials.own(self.variants[0], flops)
        return self.checked(trials, default, self.best(trials, default, lambda variant: flops))

    def within(self, trials: Trials, clock: Clock, latency: float) -> Calibration:
        """The choice whose measured time is at most a share of the unpatched model's.

        Raises: ValueError if no method is that fast.
        """
        # A timing counts like the images of its rounds: about eight quick ones, and two of what was found.
        timings = len(self.variants) * (8 * QUICK + 2 * SURE) + 2 * FINAL * SURE
        self.start(self.work(trials) + timings * len(clock.batch))
        found = {str(one): most_compute(clock, latency, partial(trials.own, one)) for one in self.variants}
        met = {name: pair for name, pair in found.items() if pair is not None}
        if not met:
            raise InvalidValueError(too_slow(trials, clock, self.variants, latency))
        self.variants = [one for one in self.variants if str(one) in met]
        times = {id(candidate): time for candidate, time in met.values()}
        default = met[str(self.variants[0])][0]
        ranked = self.ranked(trials, default, lambda variant: met[str(variant)][0].share)
        fast = [pair for one in ranked[:FINAL] if (pair := hurry(trials, clock, latency, one.candidate)) is not None]
        times |= {id(candidate): time for candidate, time in fast}
        again_ranked = rank(trials, default, [candidate for candidate, _ in fast], self.parts.choose)
        result = self.checked(trials, default, better(again_ranked), f"the best {FINAL} of ", " and fast enough")
        tried = (default, *(one for one, _ in fast))
        chosen = next(one for one in tried if (one.variant, one.schedule) == (variant_of(result), result.schedule))
        return replace(result, figures=result.figures | {"latency": clock.about(latency, times[id(chosen)])})

    def checked(
        self, trials: Trials, default: Candidate, best: Candidate | None, among: str = "", also: str = ""
    ) -> Calibration:
        """The best candidate, if images that chose nothing show it to be better, and else the default. `among` and
        `also` say what else a candidate had to be."""
        evidence = None if best is None else self.check(trials, best, default)
        improved = evidence is not None and evidence.better
        chosen = best if best is not None and improved else default
        return self.result(trials, chosen, improved, self.verdict(best, evidence, among, also), evidence, best)

    def below(self, trials: Trials, error: float) -> Calibration:
        """The choice with the least compute whose error stays below a bar."""

        def own(level: float) -> Candidate:
            return trials.own(self.variants[0], level)

        parts = self.parts
        steps = len(LEVELS).bit_length() * parts.count(parts.choose) + len(LEVELS) // 2 * parts.count(parts.check)
        self.start(self.work(trials) + steps)
        level = lowest(trials, self.parts, error, own)
        best = self.best(trials, own(level), lambda variant: level)
        at: At = own if best is None else lambda share: again(trials, best, share)
        chosen = descend(trials, self.parts, error, at)
        bounds = self.bounds(error, "images")
        defaults = [] if best is None else attempt(lambda: own(chosen.share))  # its layers may not save as much
        evidence = self.check(trials, chosen, defaults[0]) if defaults else None
        return self.result(trials, chosen, evidence is not None and evidence.better, bounds, evidence, best)

    def bounds(self, error: float, what: str) -> str:
        """That a bar on the error was kept, in words."""
        count = len(set(self.parts.sources))
        return f"mean errors stay below {error} on {what} that chose nothing: a one-sided 95 % bound of {count} sources"

    def best(self, trials: Trials, default: Candidate, share: ShareOf) -> Candidate | None:
        """The best candidate on the images that choose; None if the default is as good there."""
        return better(self.ranked(trials, default, share))

    def ranked(self, trials: Trials, default: Candidate, share: ShareOf) -> list[Ranked]:
        """The candidates that came to the last round, the best first."""
        candidates = self.candidates(trials, default, share)
        self.tried = len(candidates)
        return halve(trials, default, candidates, self.parts.choose) if candidates else []

    def candidates(self, trials: Trials, default: Candidate, share: ShareOf) -> list[Candidate]:
        """All that meet the budget; what a method or a shape cannot do is left out."""
        few = rounds(self.parts.choose)[0]

        def shaped(variant: Variant, curve: Curve) -> Candidate:
            return trials.shaped(variant, curve, share(variant))

        def judge(candidate: Candidate) -> float:
            return rank(trials, default, [candidate], few)[0].score

        found = [made for variant in self.variants for made in self.of_variant(trials, variant, share(variant))]
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

    def verdict(self, best: Candidate | None, evidence: Evidence | None, among: str, also: str) -> str:
        """What was found, in words."""
        kept = "the default is as good, keep it"
        if best is None or evidence is None:
            return f"{kept}: none of {among}{self.tried} candidates was better on the images that choose{also}"
        if evidence.better:
            return f"{best.variant} with another schedule beats the default on images that chose nothing"
        if evidence.sources < LEAST:
            return f"{kept}: {evidence.sources} sources are too few to check a choice, give {2 * LEAST} or more in all"
        return f"{kept}: that {best.variant} with another schedule loses clearly less is not shown"

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


def variant_of(found: Calibration) -> Variant:
    """The method of a choice with its options."""
    return Variant(found.method, found.options)


def better(ranked: Sequence[Ranked]) -> Candidate | None:
    """The first, if it is better than the default."""
    return ranked[0].candidate if ranked and ranked[0].score < 0 else None


def hurry(trials: Trials, clock: Clock, latency: float, candidate: Candidate) -> tuple[Candidate, TimeShare] | None:
    """The candidate if it is fast enough, or else its shape at the first of the next levels that is."""
    found = clock.time(candidate, SURE)
    if found.share <= latency:
        return candidate, found
    first = level_of(candidate.share)
    return settle(clock, latency, partial(again, trials, candidate), first, first + NEIGHBOURS)


def too_slow(trials: Trials, clock: Clock, variants: Sequence[Variant], latency: float) -> str:
    """That no method is fast enough, and how fast they are at the least compute."""
    least = [(one, lowest_reachable(partial(trials.own, one))) for one in variants]
    timed = [f"{one} {clock.time(trials.own(one, LEVELS[last]), QUICK)}" for one, last in least if last is not None]
    return (
        f"latency={latency} is not met on {clock.place} with {len(clock.batch)} images in a batch: even at the least "
        f"compute the shares of the unpatched time are {', '.join(timed) or 'unknown'}; allow more, or give larger "
        "batches or images"
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
