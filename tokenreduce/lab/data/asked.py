"""Questions about images for vision-language models: from a JSONL file, a folder of images, or what ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import photographs, scene_questions, scenes
from tokenreduce.lab.data.decoding import decode
from tokenreduce.lab.data.plain_folders import list_plain

SCENES, QUESTIONS, SEED = 150, 4, 2  # as many as the demo has, and the same
QUESTION = "Describe this image."
SIDE = 336  # of squares of photographs, in pixels


class Asked(NamedTuple):
    """Prompts of one image each.

    Args:
        images: one a prompt; a slice of them is decoded when it is taken.
        answers: the right ones of each prompt; None where none are known.
        of_image: `(prompts,)`, the number of each prompt's image.
    """

    name: str
    images: Any
    text: list[str]
    answers: list[list[str]] | None
    of_image: Tensor


class Files:
    """Pictures of files, decoded where a slice of them is taken."""

    def __init__(self, paths: Sequence[Path], upright: bool) -> None:
        self.paths, self.upright = paths, upright

    def __getitem__(self, some: slice) -> list[Image.Image]:
        return [decode(path, upright=self.upright).convert("RGB") for path in self.paths[some]]


def load_asked(data: str, limit: int | None = None, question: str | None = None, upright: bool = True) -> Asked:
    """The prompts that `data` stands for.

    Args:
        data: "scenes" (with answers), "photographs", a file .jsonl, or a folder of images.
        limit: use so many images; of a file so many lines.
        question: asked of each image that brings none.

    Raises: ValueError that says what is wrong with a file or line.
    """
    said = question or QUESTION
    if data == "scenes":
        return composed(limit or SCENES)
    if data == photographs.NAME:
        squares, _ = photographs.photographs(limit or len(photographs.sources()), SIDE)
        pictures = [Image.fromarray(square.permute(1, 2, 0).numpy()) for square in squares]
        return Asked(data, pictures, [said] * len(pictures), None, torch.arange(len(pictures)))
    path = Path(data)
    if path.is_dir():
        paths = [image for image, _ in list_plain(path).images][:limit]
        return Asked(data, Files(paths, upright), [said] * len(paths), None, torch.arange(len(paths)))
    if path.suffix == ".jsonl" and path.is_file():
        return from_lines(path, limit, upright)
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


def from_lines(path: Path, limit: int | None, upright: bool) -> Asked:
    """Of a file with one JSON object a line: `image` (a path from the file's folder on), `question` and, in all lines
    or none, `answers` (a list, or one)."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    items = [parsed(path, number, line) for number, line in enumerate(lines, 1)]
    if not items:
        raise InvalidValueError(f"{path} holds no lines; give one JSON object a line, with image and question")
    known = [item["answers"] for item in items if item["answers"]]
    if known and len(known) < len(items):
        raise InvalidValueError(f"{path} has answers in {len(known)} of {len(items)} lines; give all or none")
    paths = [path.parent / item["image"] for item in items]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(paths))}
    of_image = torch.tensor([numbers[image] for image in paths])
    return Asked(str(path), Files(paths, upright), [item["question"] for item in items], known or None, of_image)


def parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    """What a line holds."""
    try:
        item = json.loads(line)
        image, question, answers = item["image"], item["question"], item.get("answers", [])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InvalidValueError(
            f"line {number} of {path} is no JSON object with image and question, such as "
            '{"image": "a.jpg", "question": "What is this?", "answers": ["a cat"]}'
        ) from None
    answers = [answers] if isinstance(answers, str) else answers
    if not all(isinstance(text, str) for text in (image, question, *answers)):
        raise InvalidValueError(f"line {number} of {path}: image, question and answers are texts")
    return {"image": image, "question": question, "answers": answers}
