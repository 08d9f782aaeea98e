"""What a patch costs and saves where a vision-language model answers: encoding images, the prompt, and each word."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, try_arms, twin
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.speed.answering import Answering, limit_of
from tokenreduce.lab.speed.timing import Times, bootstrap_interval, interleave, synchronizer
from tokenreduce.patching.finding import find_language
from tokenreduce.patching.verbs import report, unpatch

STAGES = ("encoder", "prefill", "step")
MIB = 2**20
Found = Mapping[str, Mapping[str, Times]]  # stage -> lane -> times


def compare_answering(
    model: Any,
    prompts: Sequence[Mapping[str, Tensor]],
    arms: Sequence[Arm],
    *,
    words: int = 16,
    rounds: int = 20,
    min_time: float = 0.0,
    progress: Progress = lambda fraction, what: None,
) -> list[Row]:
    """Time the unpatched vision-language model and every arm on each prompt, the unpatched model's row first.

    Three things are timed apart, each in rounds in which all models take turns: encoding the images, the prompt until
    its first word is known, and `words` more. The limit is the unpatched language model, called with the rows that are
    left. `model` stays as it is.

    Args:
        prompts: arguments of the model for one prompt each, with its images.
        rounds: in each, every model has one turn; ratios are taken within a round.
        min_time: seconds that a turn lasts at least.

    Returns: rows with the keys of the command line's JSON, arms that the model cannot reach (`refused`) last.

    Raises: ValueError, TypeError for arguments that do not fit, and as `tokenreduce.patch`.
    """
    find_language(model)
    if words < 1 or rounds < 1:
        raise InvalidValueError(f"words is {words} and rounds {rounds}; both must be 1 or more")
    if model.get_output_embeddings() is None:
        raise InvalidValueError(
            f"this {type(model).__name__} has no head that says words; give the model with its head"
        )
    base = unpatch(twin(model)).eval()
    lanes, refused = try_arms(arms, lambda arm: patched_lane(base, arm))
    total, done = len(prompts) * len(STAGES) * (rounds + 1) * (1 + 2 * len(lanes)), 0

    def tick(what: str) -> None:
        nonlocal done
        done += 1
        progress(min(1.0, done / total), what)

    rows: list[Row] = []
    for prompt in prompts:
        rows += _measure(base, lanes, dict(prompt), words, partial(_timed, rounds, min_time, tick))
    progress(1.0, "done")
    return rows + refused


def _timed(
    rounds: int, min_time: float, tick: Callable[[str], None], device: torch.device, calls: Mapping[str, Any]
) -> dict[str, Times]:
    return interleave(calls, rounds, min_time, synchronizer(device), tick)


def _measure(
    base: Any, lanes: Sequence[tuple[Arm, Any]], prompt: dict[str, Tensor], words: int, timed: Callable[..., Any]
) -> list[Row]:
    with torch.inference_mode():
        whole = Answering(base, prompt, words)
        patched = {f"{arm} ({i})": Answering(model, prompt, words) for i, (arm, model) in enumerate(lanes)}
        limits = {f"limit of {name}": limit_of(base, one) for name, one in patched.items()}
        answering = {"unpatched": whole} | patched
        called: dict[str, Any] = answering | {name: limit for name, limit in limits.items() if limit is not None}
        device = prompt["input_ids"].device
        found: dict[str, dict[str, Times]] = {
            "encoder": timed(device, {name: one.encode for name, one in answering.items()}),
            "prefill": timed(device, {name: one.prefill for name, one in called.items()}),
            "step": timed(device, {name: one.steps for name, one in called.items()}),
        }
    rows = [_row("unpatched", found, whole, whole, words) | {"method": "unpatched", "budget": None, "options": {}}]
    for (arm, model), (name, one) in zip(lanes, patched.items(), strict=True):
        named = {"method": arm.method, "budget": arm.budget, "options": arm.options}
        shown = report(model)
        left = {} if not one.reduced else {"tokens_left": shown.visual_left, "prefill_share": shown.prefill_share}
        rows.append(_row(name, found, one, whole, words) | named | left)
    return rows


def _row(name: str, found: Found, one: Answering, whole: Answering, words: int) -> Row:
    encoder, prefill, step = (found[stage][name] for stage in STAGES)
    first = _sums(encoder, prefill)
    row: Row = {
        "images_per_prompt": one.images,
        "places": one.places,
        "tokens_left": one.visual,
        "prefill_share": 1.0,
        "encoder_ms": 1e3 * encoder.median,
        "prefill_ms": 1e3 * prefill.median,
        "ttft_ms": 1e3 * statistics.median(first),
        "ttft_interval": [1e3 * bound for bound in bootstrap_interval(first)],
        "ms_per_token": 1e3 * step.median / words,
        "kv_mib": one.kv_bytes / MIB,
        "kv_share": one.kv_bytes / whole.kv_bytes,
    }
    plain = _sums(found["encoder"]["unpatched"], found["prefill"]["unpatched"])
    gains = [before / now for before, now in zip(plain, first, strict=True)]
    row |= {"speedup": statistics.median(gains), "speedup_interval": list(bootstrap_interval(gains))}
    limit = "unpatched" if name == "unpatched" else f"limit of {name}"
    return row | _against(limit, found, first, prefill, step)


def _against(limit: str, found: Found, first: Sequence[float], prefill: Times, step: Times) -> Row:
    """Shares of the limit; None where there is none."""
    if limit not in found["prefill"]:
        return dict.fromkeys(("ttft_limit_share", "prefill_limit_share", "token_limit_share"))
    least = _sums(found["encoder"]["unpatched"], found["prefill"][limit])
    return {
        "ttft_limit_share": statistics.median(now / then for now, then in zip(first, least, strict=True)),
        "prefill_limit_share": statistics.median(prefill.ratios(found["prefill"][limit])),
        "token_limit_share": statistics.median(step.ratios(found["step"][limit])),
    }


def _sums(*parts: Times) -> list[float]:
    """Seconds of all parts together, round by round."""
    return [sum(map(statistics.median, turns)) for turns in zip(*(part.rounds for part in parts), strict=True)]
