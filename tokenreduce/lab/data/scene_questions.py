"""Questions about `scenes` and their answers, made from what each scene is known to hold.

Garments have five names here: shirts, pullovers and coats are hard to tell apart for any model of these photographs,
and so are kinds of shoes. A question is asked only where its answer is clear: of a garment whose name is there once, of
places and shades that are not on a border.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenreduce.lab.data.scenes import SIZE, Scenes

NAMES = ("shirt", "trouser", "dress", "bag", "shoe")
PLURALS = {"shirt": "shirts", "trouser": "trousers", "dress": "dresses", "bag": "bags", "shoe": "shoes"}
# By the photographs' classes.
NAME_OF = ("shirt", "trouser", "shirt", "dress", "shirt", "shoe", "shirt", "shoe", "bag", "shoe")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SHADES = {"dark": (0, 95), "grey": (112, 140), "bright": (155, 256)}  # mean grey value; between them nobody asks
CLEAR = 4.0  # pixels by which a place has to be on its side of a border


@dataclass(frozen=True)
class Thing:
    """A garment in a scene: its name, the centre of what is visible of it, in pixels, and its mean grey value."""

    name: str
    x: float
    y: float
    shade: float


@dataclass(frozen=True)
class Question:
    """A question in words with spaces between them, and its one right answer."""

    kind: str
    text: str
    answer: str


Kind = Callable[[Sequence[Thing], random.Random], Question | None]


def things(scenes: Scenes, index: int) -> list[Thing]:
    """What scene `index` holds."""
    found = []
    for box, label in zip(scenes.boxes[index].tolist(), scenes.labels[index].tolist(), strict=True):
        if label:
            left, top, right, bottom = map(int, box)
            inside = slice(top, bottom), slice(left, right)
            shown = scenes.images[index, 0][inside][scenes.masks[index][inside] == label]
            centre = ((left + right) / 2, (top + bottom) / 2)
            found.append(Thing(NAME_OF[label - 1], *centre, shown.float().mean().item()))
    return found


def ask(held: Sequence[Thing], count: int, seed: int, kinds: Sequence[Kind] | None = None) -> list[Question]:
    """`count` questions about a scene that holds these things; some may be asked twice.

    Args:
        kinds: what is drawn from, for each question anew, until one can be asked, so that `how_many` or `are_there`
            must be among them; None: every kind as often.
    """
    dice = random.Random(seed)
    asked: list[Question] = []
    while len(asked) < count:
        question = dice.choice(kinds or KINDS)(held, dice)
        if question is not None:
            asked.append(question)
    return asked


def ask_all(scenes: Scenes, count: int, seed: int, kinds: Sequence[Kind] | None = None) -> list[list[Question]]:
    """`count` questions about each scene."""
    return [ask(things(scenes, index), count, seed * 1_000_003 + index, kinds) for index in range(len(scenes))]


def beside(held: Sequence[Thing], anchor: Thing, side: str) -> str | None:
    """The name of the thing next to `anchor` on a side, "nothing", or None where that is not clear.

    A thing is on the side on which it is farthest away: a garment two steps to the left and one below is left of it.
    """
    right, down = SIDES[side]
    there = []
    for thing in held:
        if thing is not anchor:
            dx, dy = thing.x - anchor.x, thing.y - anchor.y
            if abs(abs(dx) - abs(dy)) < CLEAR:
                return None
            along, across = dx * right + dy * down, abs(dx * down) + abs(dy * right)
            if along > across:
                there.append((along, thing.name))
    there.sort()
    unclear = [name for along, name in there if name != there[0][1] and along < there[0][0] + CLEAR]
    return None if unclear else there[0][1] if there else "nothing"


def place(thing: Thing) -> str | None:
    """The quarter of the scene where a thing is, or None near a border of quarters."""
    x, y = thing.x - SIZE / 2, thing.y - SIZE / 2
    if min(abs(x), abs(y)) < CLEAR:
        return None
    return f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"


def shade(thing: Thing) -> str | None:
    """The shade of a thing, or None between shades."""
    return next((name for name, (low, high) in SHADES.items() if low <= thing.shade < high), None)


def _single(held: Sequence[Thing], dice: random.Random) -> Thing | None:
    """One of the things whose names are there once."""
    names = [thing.name for thing in held]
    single = [thing for thing in held if names.count(thing.name) == 1]
    return dice.choice(single) if single else None


def _name(held: Sequence[Thing], dice: random.Random, present: float) -> str:
    """A name that is there so often as `present` says."""
    there = sorted({thing.name for thing in held})
    absent = [name for name in NAMES if name not in there]
    return dice.choice(there if there and (dice.random() < present or not absent) else absent)


def how_many(held: Sequence[Thing], dice: random.Random) -> Question:
    if dice.random() < 0.3:
        return Question("how many", "how many things are there ?", NUMBERS[len(held)])
    name = _name(held, dice, 0.8)
    number = sum(thing.name == name for thing in held)
    return Question("how many", f"how many {PLURALS[name]} are there ?", NUMBERS[number])


def are_there(held: Sequence[Thing], dice: random.Random) -> Question:
    name = _name(held, dice, 0.5)
    answer = "yes" if any(thing.name == name for thing in held) else "no"
    return Question("are there", f"are there any {PLURALS[name]} ?", answer)


def where(held: Sequence[Thing], dice: random.Random) -> Question | None:
    thing = _single(held, dice)
    answer = thing and place(thing)
    return Question("where", f"where is the {thing.name} ?", answer) if thing and answer else None


def what_is(held: Sequence[Thing], dice: random.Random) -> Question | None:
    anchor = _single(held, dice)
    if anchor is None:
        return None
    answers = {side: beside(held, anchor, side) for side in SIDES}
    something = dice.random() < 0.75
    sides = [side for side, name in answers.items() if name and (name != "nothing") == something]
    side = dice.choice(sides) if sides else None
    return Question("what is", f"what is {side} the {anchor.name} ?", answers[side] or "") if side else None


def what_shade(held: Sequence[Thing], dice: random.Random) -> Question | None:
    thing = _single(held, dice)
    answer = thing and shade(thing)
    return Question("what shade", f"what shade is the {thing.name} ?", answer) if thing and answer else None


KINDS: tuple[Kind, ...] = (how_many, are_there, where, what_is, what_shade)
