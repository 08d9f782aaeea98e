"""`calibrate`: choose method and schedule on unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.journal import Journal, marks_of
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.clocking import Clock
from tokenreduce.lab.search.parting import collect, part
from tokenreduce.lab.search.prompt_calibration import are_prompts, calibrate_prompts, choose_prompt_variants
from tokenreduce.lab.search.proposing import need_optuna
from tokenreduce.lab.search.searching import Search
from tokenreduce.lab.search.trials import Trials, Variant, variants_of
from tokenreduce.patching.compatibility import compatible
from tokenreduce.reducers.registry import create

DEFAULT = "ward"
VARIANTS = (DEFAULT, (DEFAULT, {"early": 0}), "tome", "dpc_knn")
Named = str | tuple[str, dict[str, Any]]


def calibrate(
    model: nn.Module,
    images: Any,
    *,
    flops: float | None = None,
    error: float | None = None,
    keep: float | None = None,
    latency: float | None = None,
    methods: Sequence[Named] | None = None,
    sources: Sequence[Hashable] | None = None,
    trials: int = 0,
    greedy: bool = True,
    held_out: float = 0.5,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch_size: int = 8,
    resume: str | Path | None = None,
    progress: Callable[[float, str], object] | None = None,
) -> Calibration:
    """Choose a method and a schedule for `model` on unlabelled images; `patch(model, **result.arguments)` takes it.

    A part of the images chooses, by how far the features of the patched model are from those of the unpatched one
    (1 - cosine, of the features before the head and of the final tokens). The choice stands only if on the others it
    loses a tenth less than the default, with 99 % confidence, and neither error pays for that; else the default is
    the result. The model stays as it is.

    Of a vision-language model it is what each layer of the language model keeps of images, chosen by how far the next
    word after a prompt is from that of the unpatched model (KL divergence). See docs/vlm.md.

    Args:
        images: as the model takes them, `(n, C, H, W)` floats, or an iterable of batches; 32 or more, and varied. Or
            prompts: a list of what a processor makes of each, with images, for `generate`; 16 or more.
        flops: the share of the unpatched multiply-adds to keep, between 0 and 1; all candidates meet it.
        error: instead of `flops`: the greatest mean error. The result is the least share whose error on images that
            chose nothing has its one-sided 95 % bound below it. Of prompts, counts are then found layer by layer.
        keep: of prompts, instead of `flops`: the share of the image tokens, mean over all layers, in (0, 1).
        latency: instead of both: the greatest share of the unpatched model's time, measured here in rounds in which
            the models take turns. The result is the one that loses least among those that are fast enough.
        methods: names, or pairs of a name and options; the first is the default that others must beat. Without it:
            `ward`, also without its early keys, `tome` and `dpc_knn`, as far as they fit the model; of prompts `fastv`.
        sources: where each image comes from, such as the file that it was cut out of: images of one source are never
            on both sides. Without it each image is its own.
        trials: so many more candidates are proposed by Optuna (extra `calibrate`).
        greedy: whether a search for counts layer by layer is among the candidates. With `error`, of prompts, there is
            no other.
        held_out: the share of the sources that checks the choice.
        seed: of the parting and of Optuna.
        device: where to run; without it where the model is, which stays there. Prompts run where the model is.
        batch_size: images in a forward that is timed for `latency`.
        resume: a file that finished measurements are kept in: a search that was stopped goes on where it was.
        progress: called with the fraction that is done and what is running.

    Raises:
        ValueError, TypeError: a value, method or model that does not fit, or an `error` that cannot be kept.
    """
    check_share("held_out", held_out)
    check_counts(trials, batch_size)
    prompts = are_prompts(images)
    if prompts and (flops is not None or latency is not None):
        raise InvalidTypeError("what enters a language model is counted in tokens: give keep=0.3 instead of flops")
    if keep is not None and not prompts:
        raise InvalidTypeError(
            "keep is for prompts with images, a list of what a processor makes of each; give flops=0.6 for images"
        )
    own = {"keep": keep, "error": error} if prompts else {"flops": flops, "error": error, "latency": latency}
    check_numbers(own)
    if prompts:
        check_prompts(error, methods, trials, greedy, device)
    variants = choose_prompt_variants(model, methods) if prompts else choose_variants(model, methods)
    if trials:
        need_optuna()
    tell = progress or (lambda fraction, what: None)
    if prompts:
        return calibrate_prompts(
            model, images, variants, keep, error, sources, trials, greedy, held_out, seed, resume, tell
        )
    tensor = collect(images)
    like = next(model.parameters())
    parts = part(len(tensor), sources, held_out, seed)
    marks = marks_of(tensor)
    tensor = tensor.to(like.device if device is None else device, like.dtype)
    search = Search(variants, parts, trials, greedy, seed, tell)
    measured = Trials(model, variants[0], tensor, parts.batches, Journal(resume), search.tell)
    if latency is not None:
        batch = tensor[torch.arange(batch_size) % len(tensor)]  # few images are taken again
        found = search.within(measured, Clock(measured, batch), latency)
    else:
        found = search.at(measured, flops) if flops is not None else search.below(measured, float(error or 0))
    return replace(found, figures=found.figures | {"image_marks": marks})


def check_numbers(budgets: dict[str, float | None]) -> None:
    """Raise unless exactly one of these budgets is given and is a share."""
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        first, *more, last = budgets
        names = f"{', '.join([first, *more])} and {last}"
        raise InvalidTypeError(f"give exactly one of {names}, for example {first}=0.6")
    for name, value in given.items():
        check_share(name, value)


def check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTypeError(f"{name} is {value!r}; it must be a number")
    if not 0 < value < 1:
        raise InvalidValueError(f"{name} is {value}; it lies between 0 and 1")


def check_counts(trials: int, batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidValueError(f"batch_size is {batch_size!r}; give the number of images in a forward that is timed")
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 0:
        raise InvalidValueError(f"trials is {trials!r}; give a number of candidates for Optuna to propose, or 0")


def check_prompts(
    error: float | None, methods: Sequence[Named] | None, trials: int, greedy: bool, device: torch.device | str | None
) -> None:
    """Raise for arguments that a search on prompts would not use."""
    if device is not None:
        raise InvalidTypeError(f"device is {device!r}, but prompts run where the model is: move it there with model.to")
    several = methods is not None and not isinstance(methods, str) and len(methods) > 1
    if error is not None and (trials or not greedy or several):
        raise InvalidTypeError(
            "error= finds counts of one method, layer by layer, on prompts: name one method, and leave out trials and "
            "greedy; with keep= several methods and shapes compete"
        )


def check_methods(methods: Sequence[Named] | None) -> list[Variant]:
    """The methods with their options, or those tried by default.

    Raises: TypeError or ValueError for names and options that are wrong for every model.
    """
    named = variants_of(methods, VARIANTS)
    for one in named:
        create(one.method, one.options)
    return named


def choose_variants(model: nn.Module, methods: Sequence[Named] | None) -> list[Variant]:
    """The methods with their options, the default first; those named must fit the model, of our own those that do."""
    named, fitting = check_methods(methods), compatible(model)
    refused = [one for one in named if one.method in fitting.refused]
    if methods is not None and refused:
        why = fitting.refused[refused[0].method]
        raise InvalidValueError(f"{refused[0]} cannot run on this model: {why}; methods that fit: {', '.join(fitting)}")
    found = [one for one in named if one not in refused]
    if not found:
        others = f"; give methods= of {', '.join(fitting)}" if fitting else f": {fitting.reasons}"
        raise InvalidValueError(f"none of the methods tried by default fits this model{others}")
    return found
