"""What commands share: their common options, the parsing of methods, budgets and devices, and the progress bar."""

from __future__ import annotations

import ast
import itertools
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tokenreduce.cli.writing import check_file
from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.reducers.registry import create

EVERY = 60  # seconds from one line of progress to the next where there is no terminal
MODEL_HELP = (
    "a timm name, hf:NAME for a model or folder of transformers, fashion_vit or fashion_vim (which ship), or "
    "dinov2_small (extra 'real')"
)
Flops = Annotated[str | None, typer.Option(help="fractions of the multiply-adds left, such as 0.8,0.6")]
Ratio = Annotated[str | None, typer.Option(help="fractions of the image tokens removed, such as 0.5")]
Keep = Annotated[
    str | None,
    typer.Option(help="vision-language models: shares (0.1) or numbers (64) of each image's tokens that are kept"),
]
PerBlock = Annotated[str | None, typer.Option("--r", help="image tokens removed in every block, such as 8,13")]
Options = Annotated[
    list[str] | None, typer.Option(help="key=value for a single method, method.key=value among several; repeatable")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
Exif = Annotated[
    bool,
    typer.Option(
        "--exif/--no-exif",
        help="turn photographs as their EXIF orientation says; published figures of ImageNet are without",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="keep finished batches in this file, and go on from it; several processes need a folder that all see",
        callback=check_file,
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="also write what is shown to this file", callback=check_file)
]


def keep_arms(methods: str, keep: str | None, options: Sequence[str]) -> list[Arm]:
    """Every method at every value of `--keep`, for vision-language models."""
    names = [name.strip() for name in methods.split(",")]
    chosen = parse_options(options, names)
    for name in names:
        create(name, chosen[name])
    if keep is None:
        raise InvalidTypeError("the budget is missing; give --keep 0.1 (a share of each image) or --keep 64 (tokens)")
    kept = numbers("--keep", keep, float)
    values = [int(value) if "." not in text else value for text, value in zip(keep.split(","), kept, strict=True)]
    return [Arm(name, keep=value, **chosen[name]) for name, value in itertools.product(names, values)]


def refuse_options(task: str, given: Mapping[str, object]) -> None:
    """Raise if an option was given that the task does not use."""
    named = [name for name, value in given.items() if value]
    if named:
        raise InvalidTypeError(f"--task {task} does not use {' and '.join(named)}; leave that out")


def make_arms(methods: str, budgets: dict[str, str | None], options: Sequence[str]) -> list[Arm]:
    """Every method at every value of the one budget that was given; adaptive methods may go without."""
    names = [name.strip() for name in methods.split(",")]
    chosen = parse_options(options, names)
    # A wrong name or option is known before a model is built.
    reducers = [create(name, chosen[name]) for name in names]
    given = {kind: text for kind, text in budgets.items() if text is not None}
    if not given and all(reducer.adaptive for reducer in reducers):
        return [Arm(name, **chosen[name]) for name in names]
    if len(given) != 1:
        what = " and ".join(f"--{kind} {text}" for kind, text in given.items()) or "no budget"
        raise InvalidTypeError(f"got {what}; give exactly one of --flops, --ratio and --r, for example --flops 0.6")
    [(kind, text)] = given.items()
    values = numbers(f"--{kind}", text, int if kind == "r" else float)
    return [Arm(name, **{kind: value}, **chosen[name]) for name, value in itertools.product(names, values)]


def parse_options(options: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each method, read from texts such as `key=value` or `method.key=value`."""
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
    """The number, boolean, None or list that the text spells; any other text as it is."""
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


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[float, str], None]]:
    """A progress bar on stderr, gone at the end; without a terminal a line about every minute. The value is the
    function that moves it."""
    told = TextColumn("{task.percentage:.0f} % {task.description}", markup=False)
    columns = (BarColumn(), told, TimeRemainingColumn())
    stderr = Console(stderr=True, markup=False)
    if not shown or not stderr.is_terminal:
        yield lines_on(stderr) if shown else lambda fraction, what: None
        return
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("preparing", total=1.0)
        yield lambda fraction, what: progress.update(task, completed=fraction, description=what)


def lines_on(stderr: Console) -> Callable[[float, str], None]:
    """What writes a line about every minute, for logs."""
    last = time.monotonic()

    def tell(fraction: float, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            stderr.print(f"{fraction:.0%} {what}", highlight=False)

    return tell


def spelled(context: typer.Context) -> str:
    """The command with every option that is not as it would be without, as people type it."""
    words = ["tokenreduce", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or value == parameter.get_default(context):
            continue
        on, off = parameter.opts[0], [*parameter.secondary_opts, ""][0]
        if isinstance(value, bool):
            words.append(on if value else off)
        else:
            words += [
                word for one in (value if isinstance(value, (list, tuple)) else [value]) for word in (on, str(one))
            ]
    return shlex.join(words)
