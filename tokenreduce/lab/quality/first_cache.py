"""The bytes of keys and values that prompts leave in the cache of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenreduce.lab.speed.answering import bytes_in


@contextmanager
def first_cache(model: Any) -> Iterator[list[int]]:
    """Inside a `with` block the list gets the bytes that the first forward leaves in its cache: of `generate` those of
    the prompts, before a word is said. A `report` does not know them of prompts from which nothing leaves."""
    noted: list[int] = []

    def note(module: Any, args: tuple[Any, ...], output: Any) -> None:
        if not noted and output.past_key_values is not None:
            noted.append(bytes_in(output.past_key_values))

    hook = model.register_forward_hook(note)
    try:
        yield noted
    finally:
        hook.remove()
