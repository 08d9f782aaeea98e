"""Questions about scenes: every answer against what a slow look at the scene finds."""

from __future__ import annotations

import random
from collections import Counter
from statistics import mean
from typing import Any

import pytest

from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.data import scene_questions as asking
from tokenreduce.lab.data.scene_questions import Thing
from tokenreduce.lab.shipped.scene_words import WORDS

SCENES = scenes.load(120, seed=5)
ASKED = asking.ask_all(SCENES, 12, seed=0)
KINDS = {"T-shirt": "shirt", "pullover": "shirt", "coat": "shirt", "sandal": "shoe", "sneaker": "shoe"}
KINDS |= {"ankle boot": "shoe"}
SINGULAR = {plural: name for name, plural in asking.PLURALS.items()}


def seen(index: int) -> list[dict[str, Any]]:
    """What a scene holds, pixel by pixel."""
    found = []
    for slot, label in enumerate(SCENES.labels[index].tolist()):
        if label == 0:
            continue
        left, top, right, bottom = (int(side) for side in SCENES.boxes[index, slot].tolist())
        pixels = [
            int(SCENES.images[index, 0, y, x])
            for y in range(top, bottom)
            for x in range(left, right)
            if int(SCENES.masks[index, y, x]) == label
        ]
        name = fashion_mnist.CLASSES[label - 1]
        centre = ((left + right) / 2, (top + bottom) / 2)
        found.append({"name": KINDS.get(name, name), "at": centre, "shade": mean(pixels)})
    return found


def nearest(held: list[dict[str, Any]], anchor: dict[str, Any], side: str) -> str:
    """Of the things whose centre is farther away to this side than across, the name of that which is least far."""
    best, name = 1e9, "nothing"
    for thing in held:
        across, down = (a - b for a, b in zip(thing["at"], anchor["at"], strict=True))
        away = {"left of": -across, "right of": across, "above": -down, "below": down}[side]
        over = abs(down) if side in ("left of", "right of") else abs(across)
        if thing is not anchor and away > over and away < best:
            best, name = away, thing["name"]
    return name


def answer_by_hand(held: list[dict[str, Any]], text: str) -> str:
    words = text.removesuffix(" ?")
    if words == "how many things are there":
        return asking.NUMBERS[len(held)]
    if words.startswith("how many "):
        name = SINGULAR[words.split()[2]]
        return asking.NUMBERS[sum(thing["name"] == name for thing in held)]
    if words.startswith("are there any "):
        return "yes" if SINGULAR[words.split()[-1]] in [thing["name"] for thing in held] else "no"
    (thing,) = (thing for thing in held if thing["name"] == words.split()[-1])
    if words.startswith("where is the "):
        x, y = thing["at"]
        return ("top" if y < 40 else "bottom") + " " + ("left" if x < 40 else "right")
    if words.startswith("what shade is the "):
        return "dark" if thing["shade"] < 100 else "bright" if thing["shade"] > 150 else "grey"
    side = words.removeprefix("what is ").split(" the ")[0]
    return nearest(held, thing, side)


@pytest.mark.parametrize("index", range(0, 120, 4))
def test_answers_are_what_the_scene_shows(index: int) -> None:
    held = seen(index)
    for question in ASKED[index]:
        assert answer_by_hand(held, question.text) == question.answer, question


def test_every_kind_and_every_answer_is_asked_for() -> None:
    every = [question for some in ASKED for question in some]
    kinds = Counter(question.kind for question in every)
    assert kinds.keys() == {"how many", "are there", "where", "what is", "what shade"}
    assert min(kinds.values()) > 0.1 * len(every)
    says = Counter(question.answer for question in every)
    assert 0.4 < says["yes"] / (says["yes"] + says["no"]) < 0.6
    assert {"nothing", *asking.NAMES, *asking.SHADES, "top left", "bottom right", "two"} <= says.keys()
    words = {word for question in every for word in f"{question.text} {question.answer}".split()}
    assert words <= set(WORDS) and len(set(WORDS)) == len(WORDS)


def test_the_same_questions_for_the_same_seed() -> None:
    again = asking.ask_all(scenes.load(5, seed=5), 12, seed=0)
    assert again == ASKED[:5] != asking.ask_all(scenes.load(5, seed=5), 12, seed=1)


def test_some_kinds_are_asked_more_often() -> None:
    held = [Thing("bag", 20.0, 20.0, 50.0)]
    for times in (1, 3):
        asked = asking.ask(held, 400, 0, (asking.how_many, *[asking.where] * times))
        found = Counter(question.kind for question in asked)
        assert found.keys() == {"how many", "where"}
        assert 0.7 * times < found["where"] / found["how many"] < 1.4 * times


def test_what_is_on_a_border_is_not_asked() -> None:
    middle, corner = Thing("bag", 40.0, 20.0, 100.0), Thing("shoe", 20.0, 60.0, 90.0)
    assert asking.place(middle) is None and asking.place(corner) == "bottom left"
    assert asking.shade(middle) is None and asking.shade(corner) == "dark"
    diagonal = Thing("dress", 60.0, 41.0, 100.0)
    assert asking.beside([middle, diagonal], middle, "right of") is None
    assert asking.beside([middle, corner], middle, "below") == "shoe"
    assert asking.beside([middle, corner], middle, "above") == "nothing"


def test_of_two_things_on_a_side_the_nearer_one_if_that_is_clear() -> None:
    anchor, near, far = Thing("bag", 10.0, 40.0, 0.0), Thing("shoe", 30.0, 40.0, 0.0), Thing("dress", 40.0, 42.0, 0.0)
    assert asking.beside([anchor, far, near], anchor, "right of") == "shoe"
    beyond = Thing("dress", 33.0, 42.0, 0.0)
    assert asking.beside([anchor, beyond, near], anchor, "right of") is None
    assert asking.beside([anchor, Thing("shoe", 33.0, 42.0, 0.0), near], anchor, "right of") == "shoe"


def test_two_things_of_a_name_are_not_the_thing() -> None:
    pair = [Thing("bag", 20.0, 20.0, 50.0), Thing("bag", 60.0, 60.0, 200.0)]
    dice = random.Random(0)
    for ask in (asking.where, asking.what_is, asking.what_shade):
        assert all(ask(pair, dice) is None for _ in range(20))
    assert {asking.how_many(pair, dice).answer for _ in range(50)} == {"two", "zero"}
