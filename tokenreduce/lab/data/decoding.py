"""Reading image files: which files are images, and one way to decode them for every command."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"})
LITTER = frozenset({"thumbs.db", "desktop.ini"})  # what Windows leaves in folders


class UnreadableError(InvalidValueError):
    """A file whose picture cannot be had: an evaluation goes on without it."""

    def __init__(self, why: str) -> None:
        super().__init__(printable(why))


class NotAnImageError(UnreadableError):
    """Pillow finds no picture in a file."""


def printable(text: str) -> str:
    """The text with escapes for bytes of file names that are not UTF-8, which no table and no file could hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_unturned(name: str, upright: bool) -> None:
    """Raise if pictures that lie in no files of the user's are asked for as these are stored."""
    if not upright:
        raise InvalidTypeError(f"--no-exif is for pictures in files; {name} does not use it, leave it out")


@contextmanager
def looking() -> Iterator[None]:
    """Where a folder or file cannot be looked into, the error is a sentence. A decorator too."""
    try:
        yield
    except OSError as error:
        where = "the data" if error.filename is None else printable(str(error.filename))
        raise InvalidValueError(
            f"{where} cannot be read ({error.strerror or error}); give a folder or file that you may read"
        ) from None


def hidden(path: Path) -> bool:
    """Whether a system left the file or folder there: `.DS_Store`, `._name.jpg`, `Thumbs.db`."""
    return path.name.startswith(".") or path.name.lower() in LITTER


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file, in lower or upper case."""
    return not hidden(path) and path.suffix.lower() in ENDINGS


def decode(path: Path, *, upright: bool, content: bytes | None = None) -> Image.Image:
    """The picture in the file, decoded, grey values of 16 bits scaled to 8.

    Args:
        upright: turned as its EXIF orientation says; else as it is stored.
        content: what the file holds, where it is no file of its own but lies in another; `path` then names it.

    Raises: ValueError that says why it cannot be read.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            picture.load()
            turned = ImageOps.exif_transpose(picture) if upright else picture.copy()
        return eight_bits(turned, path)
    except Image.DecompressionBombError as error:
        raise UnreadableError(
            f"{path} is larger than Pillow reads ({error}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except UnreadableError:
        raise
    except Exception as error:  # Pillow raises all kinds for damaged files
        gone = content is None and not os.path.isfile(path)
        what = "does not exist" if gone else f"is not an image that Pillow can read ({error})"
        raise NotAnImageError(f"{path} {what}; replace the file, or take its image out") from None


def eight_bits(picture: Image.Image, path: Path) -> Image.Image:
    """The picture with 8 bits a channel, since Pillow would clip wider grey values at 255.

    Raises: ValueError if the range of the values is unknown.
    """
    values = np.asarray(picture) if picture.mode in ("I", "F") or picture.mode.startswith("I;") else None
    if values is None:
        return picture
    if picture.mode.startswith("I;") or path.suffix.lower() in (".png", ".pgm", ".ppm"):  # 16 bits at most
        return Image.fromarray((values.astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if values.min() < 0 or values.max() > 255:
        raise UnreadableError(
            f"{path} has values from {values.min():g} to {values.max():g} in 32 bits, whose range is unknown; "
            "store it with 8 or 16 bits"
        )
    return picture


def read_input(
    path: Path, transform: Callable[[Image.Image], Tensor], *, upright: bool, content: bytes | None = None
) -> Tensor:
    """What a model takes of the picture in the file; arguments as of `decode`.

    Raises: ValueError that says why there is none.
    """
    return fitted(decode(path, upright=upright, content=content), transform, path)


def fitted(picture: Image.Image, transform: Callable[[Image.Image], Tensor], path: Path) -> Tensor:
    """What a model takes of the picture that `path` names.

    Raises: ValueError if its transform refuses it.
    """
    try:
        return transform(picture.convert("RGB"))
    except Exception as error:  # transforms are other people's code, and one odd picture must not end a long run
        raise UnreadableError(
            f"{path} ({picture.width} x {picture.height} pixels) does not fit the model's transform: {error}"
        ) from None
