"""Choosing what each layer of a language model keeps of images, on prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import Journal
from tokenreduce.lab.search.calibration import Calibration, explain
from tokenreduce.lab.search.least_counts import LeastSearch
from tokenreduce.lab.search.parting import part
from tokenreduce.lab.search.prompt_trials import Prompt, PromptTrials
from tokenreduce.lab.search.trials import Variant, variants_of
from tokenreduce.patching.finding import find_language
from tokenreduce.patching.language import fitting_methods, unfit
from tokenreduce.reducers.registry import create

DEFAULT = "fastv"


class KeepCalibration(Calibration):
    """A method and what each layer of a language model keeps, chosen on prompts; `flops_share` is the share of the
    image tokens, mean over the layers."""

    @property
    def keep(self) -> dict[int, float]:
        """The layers before which tokens leave, with what each keeps of those that enter it."""
        return {layer: float(share) for layer, share in self.schedule.events}

    @property
    def arguments(self) -> dict[str, Any]:
        return {"method": self.method, "keep": self.keep, **self.options}

    def to_json(self) -> dict[str, Any]:
        found = super().to_json()
        for name in ("schedule", "restore", "prop_attn"):
            del found[name]
        found["calibration"]["token_share"] = found["calibration"].pop("flops_share")
        keep = {str(layer): share for layer, share in self.keep.items()}
        return found | {"keep": keep, "positions": "auto"}

    def __str__(self) -> str:
        lines = [self.verdict, f"{self.method} with {self.flops_share:.1%} of the image tokens, mean over the layers"]
        return "\n".join(lines + ([] if self.evidence is None else explain(self.evidence)))


def are_prompts(images: Any) -> bool:
    """Whether these are prompts as a processor makes them, and not images."""
    return isinstance(images, (list, tuple)) and bool(images) and all(isinstance(one, Mapping) for one in images)


def calibrate_prompts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    variants: Sequence[Variant],
    keep: float | None,
    error: float | None,
    sources: Sequence[Hashable] | None,
    trials: int,
    greedy: bool,
    held_out: float,
    seed: int,
    resume: str | Path | None,
    progress: Callable[[float, str], object],
) -> KeepCalibration:
    """`calibrate` on prompts; the arguments are checked."""
    for number, prompt in enumerate(prompts):
        ids = prompt.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1:
            raise InvalidValueError(
                f"prompt {number} has no input_ids (1, n); give one prompt in each, as a processor makes it with "
                'return_tensors="pt"'
            )
    parts = part(len(prompts), sources, held_out, seed)
    search = LeastSearch(variants, parts, trials, greedy, seed, progress)
    measured = PromptTrials(model, variants[0], prompts, parts.batches, Journal(resume), search.tell)
    training = [module for module in model.modules() if module.training]  # parts of it may be frozen
    try:
        model.eval()
        found = search.at(measured, keep) if keep is not None else search.below(measured, float(error or 0))
    finally:
        for module in training:
            module.training = True
    return KeepCalibration(**vars(found))


def choose_prompt_variants(model: nn.Module, methods: Sequence[Any] | None) -> list[Variant]:
    """The methods with their options, the default first; `fastv` without any."""
    _, place, adapter = find_language(model)
    reasons = adapter.refuse_layers(place)
    if reasons:
        raise InvalidValueError(f"there is nothing to search in this {type(model).__name__}: {'; '.join(reasons)}")
    named = variants_of(methods, (DEFAULT,))
    for one in named:
        why = unfit(create(one.method, one.options), place, adapter)
        if why:
            fitting = ", ".join(fitting_methods(place, adapter))
            raise InvalidValueError(f"{one} cannot run on this model: {why}; methods that fit: {fitting}")
    return named
