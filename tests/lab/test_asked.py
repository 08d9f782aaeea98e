"""Prompts from files, folders and what ships, and the words that answers are compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reals import real

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.data.asked import QUESTION, load_asked
from tokenreduce.lab.quality.vqa_words import normalised


def picture(path: Path, shade: int) -> Path:
    Image.new("L", (8, 6), shade).save(path)
    return path


def written(folder: Path, *items: Any) -> str:
    for shade, name in ((10, "a.png"), (90, "b.png")):
        picture(folder / name, shade)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    (folder / "asked.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return str(folder / "asked.jsonl")


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("A cat.", "cat"),
        ("the  Two dogs!", "2 dogs"),
        ("red, white and blue", "red white and blue"),
        ("it's 1,000 or 0.5", "it's 1,000 or 0.5"),
        ("(left-hand) side", "left hand side"),
        ("another", "another"),
        ("Ten", "10"),
        ("None", "0"),
        ("A", "a"),
        ("the a.", "the a"),
        ("", ""),
    ],
)
def test_words_of_answers(said: str, plain: str) -> None:
    assert normalised(said) == plain


def test_a_file_of_lines(tmp_path: Path) -> None:
    items = [
        {"image": "b.png", "question": "What?", "answers": ["a cat", "cat"]},
        {"image": "a.png", "question": "How many?", "answers": "two"},
        {"image": "b.png", "question": "Why?", "answers": ["no"]},
    ]
    asked = load_asked(written(tmp_path, *items))
    assert asked.text == ["What?", "How many?", "Why?"] and asked.of_image.tolist() == [0, 1, 0]
    assert asked.answers == [["a cat", "cat"], ["two"], ["no"]]
    assert [image.getpixel((0, 0)) for image in asked.images[1:3]] == [(10, 10, 10), (90, 90, 90)]
    assert load_asked(written(tmp_path, *items), limit=1).text == ["What?"]


def test_without_answers(tmp_path: Path) -> None:
    asked = load_asked(written(tmp_path, {"image": "a.png", "question": "What?"}))
    assert asked.answers is None


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["[1]"], "line 1 of"),
        ([{"image": "a.png", "question": "x"}, "{"], "line 2 of"),
        ([{"image": "a.png"}], "no JSON object with image and question"),
        ([{"image": "a.png", "question": 3}], "are texts"),
        ([{"image": "a.png", "question": "x", "answers": 3}], "answers is a list of texts"),
        ([{"image": "a.png", "question": "x", "answers": [None]}], "answers is a list of texts"),
        ([{"image": "a.png", "question": "x", "answers": {"y": 1}}], "answers is a list of texts"),
        (["", " ", "[1]"], "line 3 of"),
        ([{"image": "a.png", "question": "x"}, {"image": "c.png", "question": "x"}], "line 2 of .* no image .*c.png"),
        ([], "holds no lines"),
        ([{"image": "a.png", "question": "x", "answers": ["y"]}, {"image": "a.png", "question": "x"}], "1 of 2 lines"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, items: list[Any], says: str) -> None:
    with pytest.raises(InvalidValueError, match=says):
        load_asked(written(tmp_path, *items))


def test_a_folder_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 7)
    picture(tmp_path / "b.png", 8)
    asked = load_asked(str(tmp_path), limit=1, question="What?")
    assert asked.text == ["What?"] and asked.answers is None and len(asked.images[0:5]) == 1
    assert load_asked(str(tmp_path)).text == [QUESTION] * 2


def test_scenes_come_with_answers() -> None:
    asked = load_asked("scenes", limit=3)
    assert asked.images.shape == (12, 1, 80, 80) and asked.of_image.tolist() == sorted([0, 1, 2] * 4)
    assert asked.answers is not None and all(len(some) == 1 for some in asked.answers)


def test_what_is_neither() -> None:
    with pytest.raises(InvalidValueError, match=r"neither a folder of images nor a \.jsonl file"):
        load_asked("no_such_folder")


def test_a_question_for_lines_without(tmp_path: Path) -> None:
    file = written(tmp_path, {"image": "a.png"}, {"image": "b.png", "question": "Who?"})
    assert load_asked(file, question="Why?").text == ["Why?", "Who?"]
    with pytest.raises(InvalidValueError, match=r"line 1 of .*; --question is asked where there is none"):
        load_asked(file)
    with pytest.raises(InvalidTypeError, match="leave --question out"):
        load_asked("scenes", limit=1, question="Why?")


def test_limits_are_spread(tmp_path: Path) -> None:
    for name in "abcd":
        picture(tmp_path / f"{name}.png", ord(name))
    assert [image.getpixel((0, 0))[0] for image in load_asked(str(tmp_path), limit=2).images[0:2]] == [97, 99]
    file = written(tmp_path, *({"image": "a.png", "question": str(number)} for number in range(4)))
    assert load_asked(file, limit=2).text == ["0", "2"]


def test_lines_as_others_write_them(tmp_path: Path) -> None:
    """No answers as null, a mark at the start, ends of lines inside of texts."""
    file = written(tmp_path, '\ufeff{"image": "a.png", "question": "x\u2028y", "answers": null}')
    asked = load_asked(file)
    assert asked.text == ["x\u2028y"] and asked.answers is None
    Path(file).write_bytes(b'{"image": "a.png", "question": "\xff"}')
    with pytest.raises(InvalidValueError, match="is no text in UTF-8"):
        load_asked(file)


def test_damaged_images_are_known_at_the_start(tmp_path: Path) -> None:
    file = written(tmp_path, *({"image": name, "question": name, "answers": ["x"]} for name in ("a.png", "b.png")))
    (tmp_path / "a.png").write_bytes(b"no picture")
    asked = load_asked(file)
    assert asked.text == ["b.png"] and asked.answers == [["x"]] and asked.of_image.tolist() == [0]
    assert len(asked.left_out) == 1 and "a.png is not an image" in asked.left_out[0]
    assert load_asked(str(tmp_path)).left_out == asked.left_out
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(InvalidValueError, match=r"none of the images of .* can be read; the first: .*a.png"):
        load_asked(file)


@real
def test_squares_of_one_photograph_are_one_image() -> None:
    count = len(load_asked("photographs").text)
    of_image = load_asked("photographs", limit=2 * count + 1).of_image
    assert of_image.tolist() == [*range(count), *range(count), 0]
