"""From class folders to the classes of a model: by name where it has names, else by order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.pretrained import Pretrained


def names_of(model: Any) -> tuple[str, ...]:
    """The names of the model's outputs in order; none where it has only numbers."""
    if isinstance(model, Pretrained):
        labels = {int(number): str(name) for number, name in (model.model.config.id2label or {}).items()}
        names = tuple(labels.get(number, "") for number in range(model.num_classes))
    else:
        names = tuple(map(str, (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()))
        names = names if len(names) == getattr(model, "num_classes", 0) else ()
    return () if all(not name or name.upper() == f"LABEL_{i}" for i, name in enumerate(names)) else names


def number_folders(folders: Sequence[str], model: Any, by_name: bool) -> tuple[list[int], tuple[str, ...], str]:
    """The class number of each folder, the classes' names in order of these numbers, and in words how they were found.

    Args:
        by_name: whether labels must be outputs of the model's head.

    Raises: ValueError if some names are those of the model and others are not.
    """
    names = names_of(model) if by_name else ()
    table = lookup(names, folders)
    known = [name for name in folders if name in table]
    if known and len(known) == len(folders):
        which = "by name" if len(folders) == len(names) else f"by name, {len(folders)} of the model's {len(names)}"
        return [table[name] for name in folders], names, f"class folders are matched to the model's classes {which}"
    if known:
        lost = next(name for name in folders if name not in table)
        raise InvalidValueError(
            f"the folder {lost!r} has the name of no class of the model ({', '.join(names[:3])}, ...), as {known[0]!r} "
            "has; rename the folder or take it out, or use --head knn"
        )
    # Without names order decides: what trained the model on folders read them in its own order.
    theirs = isinstance(model, Pretrained)
    ordered = sorted(folders) if theirs else list(folders)
    told = "class folders are numbered in order of their names" + (
        "" if sorted(folders) == list(folders) else ", 10 before 2" if theirs else ", 2 before 10"
    )
    told += f" ({', '.join(ordered[:3])}{', ...' if len(ordered) > 3 else ''})"
    return [ordered.index(name) for name in folders], tuple(ordered), told


def lookup(names: Sequence[str], folders: Sequence[str]) -> dict[str, int]:
    """The number of each folder that has the name of exactly one class: the same letters, or one of its synonyms."""
    found = {}
    tries = [lambda name: {name}, lambda name: {plain(name)}, lambda name: {plain(part) for part in name.split(",")}]
    for folder in folders:
        for spell in tries:
            fits = [number for number, name in enumerate(names) if name and spell(folder) & spell(name)]
            if fits:
                if len(fits) == 1:
                    found[folder] = fits[0]
                break
    return found if len(set(found.values())) == len(found) else {}


def plain(name: str) -> str:
    """Letters and digits in lower case; a name without any as it is."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name
