"""From the numbers that a model gives its classes to those of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.samples import DenseData

# Detectors trained on COCO often have the names that PASCAL VOC gave some of its categories.
ALIASES = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
NONE = -1


def match_labels(labels: Mapping[int, str], data: DenseData) -> Tensor:
    """`(n,)`: the class number in `data` of each of the model's labels, -1 for a label that is no class there.

    By name where the model has a name for every class of the data; else in order, if either side has no names and there
    are as many labels as classes; else a label is the number itself, if the model has no names but all the numbers.

    Raises: ValueError if none of this fits, or a class map would get labels that are no class.
    """
    table = torch.full((max(labels, default=-1) + 1,), NONE)
    names = {letters_of(name): label for label, name in labels.items()}
    missing = [name for name in data.classes.values() if letters_of(name) not in names]
    placeholders = all(name.upper().startswith("LABEL_") for name in labels.values())
    if not missing:
        for number, name in data.classes.items():
            table[names[letters_of(name)]] = number
    elif len(labels) == len(data.classes) and (placeholders or not any(data.classes.values())):
        table[sorted(labels)] = torch.tensor(sorted(data.classes))
    elif placeholders and set(data.classes) <= set(labels):
        table[list(data.classes)] = torch.tensor(list(data.classes))
    else:
        raise misfit(labels, data, missing)
    if data.task == "segmentation" and (table[sorted(labels)] == NONE).any():
        raise misfit(labels, data, missing)
    return table


def misfit(labels: Mapping[int, str], data: DenseData, missing: list[str]) -> InvalidValueError:
    """The error for a model that was trained on other classes."""
    lacks = [name for name in missing if name]
    which = f"; it has no {lacks[0]!r}" + (f" and {len(lacks) - 1} more" if len(lacks) > 1 else "") if lacks else ""
    some = ", ".join(labels[label] for label in sorted(labels)[:3])
    return InvalidValueError(
        f"the model has {len(labels)} classes ({some}, ...), {data.name} has {len(data.classes)}{which}; "
        "give a model trained on these classes"
    )


def letters_of(name: str) -> str:
    """A name in lower case, without spaces and signs, and as COCO writes it."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return ALIASES.get(letters, letters)
