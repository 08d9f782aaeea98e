"""`tokenreduce bench`."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from tokenreduce.bench import Arm, compare, slower_sentences
from tokenreduce.cli.output import Row, console, environment, print_table, write_json
from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.registry import create

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The columns do not fit one terminal line.
NAMES = ("method", "budget", "batch_size")
SPEED = (*NAMES, "median_ms", "p90_ms", "images_per_second", "speedup", "speedup_interval", "limit_share")
COST = (*NAMES, "macs", "flops_share", "tokens_left", "peak_memory_mib", "plan_us", "apply_us")
Size = tuple[int, ...]


def bench(
    model: Annotated[
        str, typer.Option(help="a timm name, or fashion_vit for the shipped model")
    ] = "deit_small_patch16_224",
    method: Annotated[str, typer.Option(help="methods, separated by commas")] = "tome",
    flops: Annotated[str | None, typer.Option(help="fractions of the multiply-adds left, such as 0.8,0.6")] = None,
    ratio: Annotated[str | None, typer.Option(help="fractions of the image tokens removed, such as 0.5")] = None,
    r: Annotated[str | None, typer.Option("--r", help="image tokens removed in every block, such as 8,13")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value for a single method, method.key=value among several; repeatable")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="batch sizes, separated by commas")] = "1,32",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the square input instead of the model's own")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads instead of PyTorch's default")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds; every model runs in each")] = 20,
    min_time: Annotated[float, typer.Option(min=0, help="seconds that a model's turn in a round lasts at least")] = 0.1,
    pretrained: Annotated[
        bool, typer.Option(help="load trained weights; not needed: speed does not depend on weights")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")] = None,
) -> None:
    """Time patched models against the unpatched one, and against free slicing to the same token counts (the limit)."""
    arms = make_arms(method, {"flops": flops, "ratio": ratio, "r": r}, option or [])
    sizes = numbers("--batch-size", batch_size, int)
    if any(size < 1 for size in sizes):
        raise InvalidValueError(f"--batch-size is {batch_size!r}; batch sizes are 1 or more, such as 1,32")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    place = usable_device(device)
    network, shape = load_model(model, image_size, pretrained)
    with using_threads(threads):
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(size, *shape, generator=generator).to(place, DTYPES[dtype]) for size in sizes]
        with progress_bar() as progress:
            rows = compare(network, images, arms, rounds=rounds, min_time=min_time, progress=progress)
        side = "x".join(map(str, shape))
        print_table(select(rows, SPEED), f"{model}, input {side}: speed in {rounds} rounds")
        print_table(select(rows, COST), "cost of one image in MACs, of the batch in memory and in the reducer's time")
        console.print(
            f"{place_name(place)}, {dtype}, {versions()}; attention: {attention_summary(rows)}", highlight=False
        )
        for sentence in slower_sentences(rows) + gaps(rows):
            console.print(sentence, style="yellow", highlight=False)
        if json_file is not None:
            settings: dict[str, Any] = {
                "model": model,
                "input": list(shape),
                "device": place_name(place),
                "dtype": dtype,
            }
            settings |= {"rounds": rounds, "min_time": min_time, "pretrained": pretrained}
            write_json(json_file, "bench", rows, **settings)


def select(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    return [{key: row[key] for key in keys} for row in rows]


def make_arms(methods: str, budgets: dict[str, str | None], options: Sequence[str]) -> list[Arm]:
    """Every method at every value of the one budget that was given."""
    names = [name.strip() for name in methods.split(",")]
    chosen = parse_options(options, names)
    for name in names:
        create(name, chosen[name])  # a wrong name or option is known before a model is built
    given = {kind: text for kind, text in budgets.items() if text is not None}
    if len(given) != 1:
        what = " and ".join(f"--{kind} {text}" for kind, text in given.items()) or "no budget"
        raise InvalidTypeError(f"got {what}; give exactly one of --flops, --ratio and --r, for example --flops 0.6")
    [(kind, text)] = given.items()
    values = numbers(f"--{kind}", text, int if kind == "r" else float)
    return [Arm(name, **{kind: value}, **chosen[name]) for name, value in itertools.product(names, values)]


def parse_options(options: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each method from texts `key=value` or `method.key=value`."""
    chosen: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for text in options:
        path, equals, value = text.partition("=")
        name, _, key = path.rpartition(".")
        if not equals or not key:
            raise InvalidValueError(
                f"--option is {text!r}; it must be key=value or method.key=value, as in metric=features"
            )
        if not name and len(methods) > 1:
            raise InvalidValueError(f"--option is {text!r}; say which method it is for, such as {methods[0]}.{text}")
        if name and name not in chosen:
            raise unknown("method in --option", name, methods)
        chosen[name or methods[0]][key] = literal(value)
    return chosen


def literal(text: str) -> Any:
    """A number, a boolean, None or a list where the text reads as one, else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def numbers(name: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """The numbers in a list separated by commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InvalidValueError(f"{name} is {text!r}; give {what} separated by commas") from None


def usable_device(name: str) -> torch.device:
    """The CPU or CUDA device of that name, if this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("cpu", "cuda", "cuda:N")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("cpu", "cuda", "cuda:N"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise InvalidValueError(f"device {name!r} is not available: PyTorch sees {seen} CUDA devices; use cpu")
    return device


def load_model(name: str, image_size: int | None, pretrained: bool) -> tuple[nn.Module, Size]:
    """The model and its input's shape without the batch."""
    if name == "fashion_vit":
        return load_fashion_vit(image_size, pretrained)
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all"
        raise InvalidValueError(f"unknown model {name!r}; valid: fashion_vit or a name of timm; {hint}")
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **sized).eval()
        channels, *own = model.pretrained_cfg["input_size"]
        shape = (channels, *([image_size] * 2 if image_size else own))
        if image_size is not None:
            with torch.inference_mode():
                model(torch.zeros(1, *shape))  # some sizes fail only here
    except (TypeError, RuntimeError, OSError, AssertionError) as error:
        given = f" with --image-size {image_size}" if image_size else ""
        raise InvalidValueError(f"timm cannot run {name}{given}: {error}") from None
    return model, shape


def load_fashion_vit(image_size: int | None, pretrained: bool) -> tuple[nn.Module, Size]:
    """The model that ships with the library."""
    from tokenreduce.backbones.fashion_vit import fashion_vit

    if image_size not in (None, 28):
        raise InvalidValueError(f"--image-size is {image_size}; fashion_vit takes 28")
    return fashion_vit(pretrained), (1, 28, 28)


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """PyTorch's CPU threads inside a `with` block; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that disappears; the value is the function that moves it."""
    columns = (BarColumn(), TextColumn("{task.percentage:.0f} % {task.description}"), TimeRemainingColumn())
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("preparing", total=1.0)
        yield lambda fraction, what: progress.update(task, completed=fraction, description=what)


def place_name(device: torch.device) -> str:
    """ "cpu", or "cuda" with the name of the card."""
    return str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def versions() -> str:
    facts = environment()
    named = ", ".join(f"{name} {facts[name]}" for name in ("tokenreduce", "torch", "timm") if name in facts)
    return f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}, {named}"


def attention_summary(rows: Sequence[Row]) -> str:
    """The backend that ran, or each row's where they differ."""
    if len({row["attention"] for row in rows}) == 1:
        return str(rows[0]["attention"])
    return "; ".join(f"{describe(row)}: {row['attention']}" for row in rows)


def gaps(rows: Sequence[Row]) -> list[str]:
    """A sentence for each thing that could not be measured."""
    unlimited = [row for row in rows if row["limit_share"] is None]
    uncounted = [row for row in rows if row["uncounted"]]
    return [f"{describe(row)}: no limit, this model's blocks cannot be sliced." for row in unlimited] + [
        f"{describe(row)}: its MACs lack {', '.join(row['uncounted'])}." for row in uncounted
    ]


def describe(row: Row) -> str:
    return f"{row['method']}{' at ' + row['budget'] if row['budget'] else ''}, batch {row['batch_size']}"
