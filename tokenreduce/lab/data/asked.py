"""Questions about images for vision-language models: from a JSONL file, a folder of images, or what ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.data import photographs, scene_questions, scenes
from tokenreduce.lab.data.decoding import UnreadableError, decode, looking, refuse_unturned
from tokenreduce.lab.data.plain_folders import list_plain
from tokenreduce.lab.data.samples import spread

SCENES, QUESTIONS, SEED = 150, 4, 2  # as many as the demo has, and the same
QUESTION = "Describe this image."
SIDE = 336  # of squares of photographs, in pixels


class Asked(NamedTuple):
    """Prompts of one image each.

    Args:
        images: one a prompt; a slice of them is decoded when it is taken.
        answers: the right ones of each prompt; None where none are known.
        of_image: `(prompts,)`, the number of each prompt's image; squares of one photograph count as one image, as
            they overlap.
        left_out: why images could not be read, a sentence each.
    """

    name: str
    images: Any
    text: list[str]
    answers: list[list[str]] | None
    of_image: Tensor
    left_out: tuple[str, ...] = ()


class Files:
    """Pictures of files, decoded where a slice of them is taken."""

    def __init__(self, paths: Sequence[Path], upright: bool) -> None:
        self.paths, self.upright = paths, upright

    def __getitem__(self, some: slice) -> list[Image.Image]:
        return [decode(path, upright=self.upright).convert("RGB") for path in self.paths[some]]


@looking()
def load_asked(data: str, limit: int | None = None, question: str | None = None, upright: bool = True) -> Asked:
    """The prompts that `data` stands for.

    Args:
        data: "scenes" (with answers), "photographs", a file .jsonl, or a folder of images.
        limit: use so many images, spread evenly; of a file so many lines.
        question: asked of each image that brings none; lines of a file must bring one without it.

    Raises: ValueError that says what is wrong with a file or line, TypeError for a `question` or `upright=False` that
        is not used.
    """
    said = question or QUESTION
    if data in ("scenes", photographs.NAME):
        refuse_unturned(data, upright)
    if data == "scenes":
        if question is not None:
            raise InvalidTypeError("scenes bring questions of their own, with answers; leave --question out")
        return composed(limit or SCENES)
    if data == photographs.NAME:
        squares, names = photographs.photographs(limit or len(photographs.sources()), SIDE)
        pictures = [Image.fromarray(square.permute(1, 2, 0).numpy()) for square in squares]
        return Asked(data, pictures, [said] * len(pictures), None, numbered(names))
    path = Path(data)
    if path.is_dir():
        there = [image for image, _ in list_plain(path).images]
        items = [{"image": there[index], "question": said} for index in spread(len(there), limit)]
        return asked_of(data, items, upright)
    if path.suffix == ".jsonl" and path.is_file():
        return from_lines(path, limit, question, upright)
    raise InvalidValueError(
        f"--data {data} is neither a folder of images nor a .jsonl file; valid too: scenes, {photographs.NAME}"
    )


def composed(count: int) -> Asked:
    """Questions about composed scenes, grey images `(prompts, 1, 80, 80)`."""
    held = scenes.load(count, seed=SEED)
    questions = [one for some in scene_questions.ask_all(held, QUESTIONS, SEED) for one in some]
    of_image = torch.arange(count).repeat_interleave(QUESTIONS)
    return Asked(
        "scenes", held.images[of_image], [one.text for one in questions], [[one.answer] for one in questions], of_image
    )


def from_lines(path: Path, limit: int | None, question: str | None, upright: bool) -> Asked:
    """Of a file with one JSON object a line: `image` (a path from the file's folder on), `question`, which may be left
    out where one is given here, and, in all lines or none, `answers` (a list, or one)."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other ends of lines
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path} is no text in UTF-8 ({error}); store it as UTF-8") from None
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    chosen = [numbers[index] for index in spread(len(numbers), limit)]
    items = [parsed(path, number, lines[number - 1], question) for number in chosen]
    if not items:
        raise InvalidValueError(f"{path} holds no lines; give one JSON object a line, with image and question")
    known = [item for item in items if item["answers"]]
    if known and len(known) < len(items):
        raise InvalidValueError(f"{path} has answers in {len(known)} of {len(items)} lines; give all or none")
    return asked_of(str(path), items, upright)


def parsed(path: Path, number: int, line: str, question: str | None) -> dict[str, Any]:
    """What a line holds."""
    try:
        item = json.loads(line)
        image, said, answers = item["image"], item.get("question", question), item.get("answers")
    except (ValueError, TypeError, KeyError, AttributeError):
        item = said = None
    if item is None or said is None:
        raise InvalidValueError(
            f"line {number} of {path} is no JSON object with image and question, such as "
            '{"image": "a.jpg", "question": "What is this?", "answers": ["a cat"]}; --question is asked where there '
            "is none"
        )
    answers = [] if answers is None else [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in (image, said, *answers)):
        raise InvalidValueError(f"line {number} of {path}: image and question are texts, answers is a list of texts")
    if not (path.parent / image).is_file():
        raise InvalidValueError(
            f"line {number} of {path}: there is no image {path.parent / image}; paths are from the file's folder on"
        )
    return {"image": path.parent / image, "question": said, "answers": answers}


def asked_of(name: str, items: Sequence[dict[str, Any]], upright: bool) -> Asked:
    """The prompts about images in files, without those about images that cannot be read: it is known at the start.

    Raises: ValueError if none can be read.
    """
    reasons = unreadable([item["image"] for item in items], upright)
    items = [item for item in items if item["image"] not in reasons]
    if not items:
        raise InvalidValueError(f"none of the images of {name} can be read; the first: {next(iter(reasons.values()))}")
    paths = [item["image"] for item in items]
    answers: Any = [item.get("answers") for item in items]
    text = [item["question"] for item in items]
    known = answers if any(answers) else None
    return Asked(name, Files(paths, upright), text, known, numbered(paths), tuple(reasons.values()))


def unreadable(paths: Sequence[Path], upright: bool) -> dict[Path, str]:
    """Why images cannot be read, by their paths."""
    reasons = {}
    for path in dict.fromkeys(paths):
        try:
            decode(path, upright=upright)
        except UnreadableError as error:
            reasons[path] = str(error)
    return reasons


def numbered(images: Sequence[Any]) -> Tensor:
    """`(n,)`: the number of each image, the same where it is the same."""
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    return torch.tensor([numbers[image] for image in images])
