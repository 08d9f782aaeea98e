"""`tokenreduce eval --task vlm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenreduce.cli.arguments import keep_arms, place_name, progress_bar
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.writing import write_json
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.asked import load_asked
from tokenreduce.lab.data.photographs import NAME as PHOTOGRAPHS
from tokenreduce.lab.quality.evaluation import Setup
from tokenreduce.lab.quality.vision_language import EXACT, MEANING, measure_answers
from tokenreduce.lab.shipped.vision_language import SCENES, load_prompted

WORDS = 20


def evaluate_vlm(
    setup: Setup,
    method: str,
    keep: str | None,
    option: Sequence[str],
    words: int | None,
    question: str | None,
    json_file: Path | None,
) -> None:
    """Measure what vision-language models lose."""
    arms = keep_arms(method, keep, option)
    model = setup.model or SCENES
    data = setup.data or ("scenes" if model == SCENES else PHOTOGRAPHS)
    if model == SCENES and data != "scenes":
        raise InvalidValueError(f"{SCENES} answers questions about scenes alone; leave out --data {data}")
    asked = load_asked(data, setup.limit, question, setup.upright)
    prompted = load_prompted(model, setup.pretrained)
    prompted.model.to(setup.device)
    batch_size, words = setup.batch_size or 8, words or (3 if model == SCENES else WORDS)
    with progress_bar() as progress:
        rows = measure_answers(prompted, arms, asked, batch_size=batch_size, words=words, progress=progress)
    measured = [{key: value for key, value in row.items() if key != "images"} for row in rows if "refused" not in row]
    print_table(measured, f"{model}, {len(asked.text)} prompts of {asked.name}")
    console.print(MEANING if asked.answers is None else f"{EXACT}; {MEANING}", highlight=False)
    print_refused(rows)
    if json_file is not None:
        settings: dict[str, Any] = {"task": "vlm", "model": model, "pretrained": setup.pretrained, "data": asked.name}
        settings |= {"prompts": len(asked.text), "batch_size": batch_size, "words": words, "question": question}
        write_json(json_file, "eval", rows, **settings, upright=setup.upright, device=place_name(setup.device))  # type: ignore[arg-type]
