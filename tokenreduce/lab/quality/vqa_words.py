"""Words of answers as scorers of visual question answering compare them."""

from __future__ import annotations

import re
import string

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
MARKS = re.escape(string.punctuation.replace("'", ""))


def normalised(text: str) -> str:
    """The answer in lower case without articles and punctuation, "none" and numbers to ten as digits.

    Close to the rules of the VQA challenge (2015), with three differences. Its list of contractions is left out, and so
    an apostrophe is kept. A mark between two digits stays (1,000, 0.5, 1/2), every other one becomes a space. An answer
    of nothing but articles is kept (there "A" is empty, and equals an answer without words).
    """
    text = re.sub(rf"(?<!\d)[{MARKS}]|[{MARKS}](?!\d)", " ", text.lower())
    words = [DIGITS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in ARTICLES] or words)
