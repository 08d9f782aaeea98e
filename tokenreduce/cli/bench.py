"""`tokenreduce bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tokenreduce.cli.arguments import (
    MODEL_HELP,
    Device,
    Flops,
    JsonFile,
    Keep,
    Options,
    PerBlock,
    Ratio,
    keep_arms,
    make_arms,
    numbers,
    progress_bar,
    refuse_options,
    usable_device,
)
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.schedules import Schedules, with_files
from tokenreduce.cli.writing import write_json
from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.environment import environment, place_name
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.shipped.random_llava import NAME as RANDOM
from tokenreduce.lab.shipped.vision_language import load_prompted, moved, prompt_of
from tokenreduce.lab.speed import compare, slower_sentences
from tokenreduce.lab.speed.generating import compare_answering
from tokenreduce.lab.speed.modes import MODES, check_modes

DEFAULT, TASKS = "deit_small_patch16_224", ("encode", "generate")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The columns do not fit one terminal line.
NAMES = ("method", "budget", "mode", "batch_size")
SPEED = (*NAMES, "median_ms", "p90_ms", "images_per_second", "speedup", "speedup_interval", "limit_share")
COST = (*NAMES, "macs", "flops_share", "tokens_left", "peak_memory_mib", "plan_us", "apply_us")
PROMPT = ("method", "budget", "images_per_prompt")
FIRST = "encoder_ms prefill_ms prefill_limit_share ttft_ms ttft_interval speedup speedup_interval"
LATER = "places tokens_left prefill_share ttft_limit_share ms_per_token token_limit_share kv_mib kv_share"
MEANING = (
    "encoder: vision tower and projector; prefill: the prompt until its first word, with what the method does; first "
    "token: both; limit: the unpatched language model, called with the rows that are left"
)


def bench(
    model: Annotated[
        str | None,
        typer.Option(
            help=f"{MODEL_HELP}; default: {DEFAULT}. generate: random-llava (default), scene_vlm or hf:NAME of a "
            "vision-language model"
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="encode: images (default); generate: answers about them")] = "encode",
    method: Annotated[
        str | None, typer.Option(help="methods, separated by commas; default: tome; generate: divprune")
    ] = None,
    flops: Flops = None,
    ratio: Ratio = None,
    r: PerBlock = None,
    keep: Keep = None,
    schedule: Schedules = None,
    option: Options = None,
    batch_size: Annotated[
        str | None, typer.Option(help="batch sizes, separated by commas; default: 1,32; generate has one prompt")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="generate: images in a prompt, separated by commas; default: 1,4")
    ] = None,
    words: Annotated[int | None, typer.Option(min=1, help="generate: words after the first; default: 16")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the square input; default: the model's own size")
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help=", ".join([*DTYPES, *SHORT]))] = "float32",
    mode: Annotated[str, typer.Option(help=f"how models run, separated by commas: {', '.join(MODES)}")] = "eager",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's own")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="number of rounds; every model runs in every round")] = 20,
    min_time: Annotated[float, typer.Option(min=0, help="least seconds of a model's turn in a round")] = 0.1,
    pretrained: Annotated[
        bool, typer.Option(help="load trained weights; not needed: speed does not depend on weights")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time patched models against the unpatched one, and against the unpatched one with its tokens sliced to the same
    counts, which costs nothing (the limit). generate: the first token, further ones and the cache."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    dtype = SHORT.get(dtype, dtype)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, *SHORT])
    place = usable_device(device)
    if task == "generate":
        foreign: dict[str, object] = {"--flops": flops, "--ratio": ratio, "--r": r, "--batch-size": batch_size}
        refuse_options(task, foreign | {"--image-size": image_size, f"--mode {mode}": mode != "eager"})
        kept = with_files(
            schedule,
            [method, keep, option],
            lambda: keep_arms("divprune" if method is None else method, keep, option or []),
            language=True,
        )
        with using_threads(threads):
            bench_generate(
                model or RANDOM, kept, images or "1,4", words or 16, rounds, min_time, place, DTYPES[dtype], pretrained,
                json_file,
            )  # fmt: skip
        return
    refuse_options(task, {"--keep": keep, "--images": images, "--words": words})
    model, batch_size = model or DEFAULT, batch_size or "1,32"
    budgets = {"flops": flops, "ratio": ratio, "r": r}
    arms = with_files(
        schedule,
        [method, option, *budgets.values()],
        lambda: make_arms("tome" if method is None else method, budgets, option or []),
    )
    sizes = numbers("--batch-size", batch_size, int)
    if any(size < 1 for size in sizes):
        raise InvalidValueError(f"--batch-size is {batch_size!r}; batch sizes are 1 or more, such as 1,32")
    modes = [word.strip() for word in mode.split(",")]
    check_modes(modes, place)
    network, shape = load_model(model, image_size, pretrained)
    with using_threads(threads):
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(size, *shape, generator=generator).to(place, DTYPES[dtype]) for size in sizes]
        with progress_bar() as progress:
            rows = compare(network, noise, arms, rounds=rounds, min_time=min_time, modes=modes, progress=progress)
        measured = [row for row in rows if "refused" not in row]
        side = "x".join(map(str, shape))
        print_table(select(measured, SPEED), f"{model}, input {side}: speed in {rounds} rounds")
        print_table(select(measured, COST), "cost of one image in MACs, of the batch in memory, of the reducer in time")
        console.print(
            f"{place_name(place)}, {dtype}, {versions()}; attention: {attention_summary(measured)}", highlight=False
        )
        print_refused(rows)
        for sentence in slower_sentences(measured) + gaps(measured):
            console.print(sentence, style="yellow", highlight=False)
        if json_file is not None:
            settings: dict[str, Any] = {
                "model": model,
                "input": list(shape),
                "device": place_name(place),
                "dtype": dtype,
            }
            settings |= {"modes": modes, "rounds": rounds, "min_time": min_time, "pretrained": pretrained}
            write_json(json_file, "bench", rows, **settings)


def bench_generate(
    model: str,
    arms: Sequence[Arm],
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
    counts = numbers("--images", images, int)
    if any(count < 1 for count in counts):
        raise InvalidValueError(f"--images is {images!r}; numbers of images in a prompt are 1 or more, such as 1,4")
    prompted = load_prompted(model, pretrained)
    network = prompted.model.to(place, dtype)
    prompts = [moved(prompt_of(prompted, count), network) for count in counts]
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


def some(rows: Sequence[Row], keys: str) -> list[Row]:
    """The rows with these keys, beside those that name them."""
    return [{key: row.get(key) for key in (*PROMPT, *keys.split())} for row in rows]


def select(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """These keys of the rows, without the mode if all are eager."""
    eager = all(row["mode"] == "eager" for row in rows)
    return [{key: row[key] for key in keys if key != "mode" or not eager} for row in rows]


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's CPU threads inside a `with` block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions() -> str:
    facts = environment()
    libraries = ("tokenreduce", "torch", "timm", "transformers")
    named = ", ".join(f"{name} {facts[name]}" for name in libraries if name in facts)
    return f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}, {named}"


def attention_summary(rows: Sequence[Row]) -> str:
    """The attention backend that ran, or that of each row if they differ."""
    if len({row["attention"] for row in rows}) == 1:
        return str(rows[0]["attention"])
    return "; ".join(f"{describe(row)}: {row['attention']}" for row in rows)


def gaps(rows: Sequence[Row]) -> list[str]:
    """A sentence for each thing that could not be measured."""
    unlimited = [row for row in rows if row["limit_share"] is None]
    uncounted = [row for row in rows if row["uncounted"]]
    return [f"{describe(row)}: no limit, because the tokens of this model cannot be sliced." for row in unlimited] + [
        f"{describe(row)}: its MACs leave out {', '.join(row['uncounted'])}, whose cost is unknown."
        for row in uncounted
    ]


def describe(row: Row) -> str:
    mode = "" if row["mode"] == "eager" else f", {row['mode']}"
    return f"{row['method']}{' at ' + row['budget'] if row['budget'] else ''}, batch {row['batch_size']}{mode}"
