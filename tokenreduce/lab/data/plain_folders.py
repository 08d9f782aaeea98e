"""A folder of images without labels: all images in it, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.class_folders import Listing, instead, visible
from tokenreduce.lab.data.decoding import is_image

NO_LABEL = -1


def is_plain(root: Path) -> bool:
    """Whether the folder holds images and no folders, so that nothing in it is a class."""
    entries = visible(root)
    return any(is_image(path) for path in entries) and not any(path.is_dir() for path in entries)


def list_plain(root: Path) -> Listing:
    """The images below `root` in natural order, all of folder 0, and the files that are none.

    Raises: ValueError if there are no images.
    """
    files = list(files_below(root))
    images = tuple((path, 0) for path in files if is_image(path))
    others = tuple(path for path in files if not is_image(path))
    if not images:
        raise InvalidValueError(
            f"{root} holds no images; give a folder with .jpg or .png files, at any depth{instead(others)}"
        )
    return Listing((), images, others)


def files_below(folder: Path) -> Iterator[Path]:
    """Files that are not hidden; links to folders are not followed, as they could lead in a circle."""
    for path in visible(folder):
        if not path.is_dir():
            yield path
        elif not path.is_symlink():
            yield from files_below(path)
