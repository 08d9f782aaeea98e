"""Words of answers as scorers of visual question answering compare them."""

from __future__ import annotations

import re
import string

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}
MARKS = re.escape(string.punctuation.replace("'", ""))


def normalised(text: str) -> str:
    """The answer in lower case without articles and punctuation, numbers to ten as digits, single spaces.

    Close to the rules of the VQA challenge (2015): its list of contractions is left out, and so an apostrophe is kept.
    Commas and points between digits stay: 1,000 and 0.5 are numbers.
    """
    text = re.sub(rf"(?<!\d)[{MARKS}]|[{MARKS}](?!\d)", " ", text.lower())
    words = (DIGITS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)
