"""`tokenreduce bench --task generate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreduce.cli.arguments import keep_arms, numbers, place_name, progress_bar
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.writing import write_json
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.random_llava import NAME as RANDOM
from tokenreduce.lab.shipped.vision_language import Prompted, handmade_inputs, load_prompted, moved, noise_inputs
from tokenreduce.lab.speed.generating import compare_answering

DEFAULT = RANDOM
PROMPT_WORDS = 40  # around the images of a prompt of random words
NAMES = ("method", "budget", "images_per_prompt")
FIRST = "encoder_ms prefill_ms prefill_limit_share ttft_ms ttft_interval speedup speedup_interval"
LATER = "tokens_left prefill_share ttft_limit_share ms_per_token token_limit_share kv_mib kv_share"
MEANING = (
    "encoder: vision tower and projector; prefill: the prompt until its first word, with what the method does; first "
    "token: both; limit: the unpatched language model, called with the rows that are left"
)


def bench_generate(
    model: str,
    method: str,
    keep: str | None,
    option: Sequence[str],
    images: str,
    words: int,
    rounds: int,
    min_time: float,
    place: torch.device,
    dtype: torch.dtype,
    pretrained: bool,
    json_file: Path | None,
) -> None:
    """Time vision-language models: the first token, each further one, and the cache."""
    arms = keep_arms(method, keep, option)
    counts = numbers("--images", images, int)
    if any(count < 1 for count in counts):
        raise InvalidValueError(f"--images is {images!r}; numbers of images in a prompt are 1 or more, such as 1,4")
    prompted = load_prompted(model, pretrained)
    network = prompted.model.to(place, dtype)
    prompts = [moved(inputs_of(prompted, count), network) for count in counts]
    with progress_bar() as progress:
        rows = compare_answering(
            network, prompts, arms, words=words, rounds=rounds, min_time=min_time, progress=progress
        )
    measured = [row for row in rows if "refused" not in row]
    print_table(some(measured, FIRST), f"{model}: the first token, in {rounds} rounds")
    print_table(some(measured, LATER), f"{words} further tokens, and the cache of the prompt")
    console.print(MEANING, highlight=False)
    print_refused(rows)
    if json_file is not None:
        settings: dict[str, Any] = {"task": "generate", "model": model, "device": place_name(place)}
        settings |= {"dtype": str(dtype).removeprefix("torch."), "words": words, "rounds": rounds}
        write_json(json_file, "bench", rows, **settings, min_time=min_time, pretrained=pretrained)


def inputs_of(prompted: Prompted, images: int) -> dict[str, Tensor]:
    """A prompt with so many images of noise: times do not depend on what is in them."""
    if prompted.chats:
        return noise_inputs(prompted, images)
    return handmade_inputs(prompted.model, images, PROMPT_WORDS)


def some(rows: Sequence[Row], keys: str) -> list[Row]:
    """The rows with these keys, beside those that name them."""
    return [{key: row.get(key) for key in (*NAMES, *keys.split())} for row in rows]
