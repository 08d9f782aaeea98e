"""Reading a part: the key of each image and the picture in it, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from tokenreduce.lab.data.decoding import UnreadableError, printable, read_input
from tokenreduce.lab.embedding.listing import Part


def read_part(part: Part) -> Iterator[tuple[str, Path, bytes | None]]:
    """For each image its key, its path and, where it is no file of its own, what it holds.

    Keys are unique in a collection: the path below the folder; `shard.tar/name`; `table.parquet/row`. Of names that are
    not UTF-8, which Parquet cannot hold, they have the bytes escaped.
    """
    for key, path, content in READERS[part["kind"]](part):
        yield printable(key), path, content


def read_folder(part: Part) -> Iterator[tuple[str, Path, bytes | None]]:
    for name in part["images"]:
        yield name, Path(part["file"], name), None


def read_tar(part: Part) -> Iterator[tuple[str, Path, bytes | None]]:
    file = Path(part["file"])
    with file.open("rb") as archive:
        for name, offset, size in part["images"]:
            archive.seek(offset)
            yield f"{file.name}/{name}", file / name, archive.read(size)


def read_table(part: Part) -> Iterator[tuple[str, Path, bytes | None]]:
    import pyarrow.parquet as pq

    file, name = Path(part["file"]), part["column"]
    rows = pq.ParquetFile(file).read_row_group(part["group"], columns=[name])[name]
    for number in range(part["start"], part["stop"]):
        value = rows[number].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        key = f"{file.name}/{part['before'] + number}"
        yield key, file / str(part["before"] + number), content or b""  # a missing image cannot be read


READERS = {"folder": read_folder, "tar": read_tar, "table": read_table}


def inputs_of(
    part: Part, transform: Callable[[Image.Image], Tensor], upright: bool
) -> Iterator[tuple[str, Tensor | str]]:
    """For each image its key, and what the model takes of it, or the reason why it cannot be had."""
    for key, path, content in read_part(part):
        try:
            found: Tensor | str = read_input(path, transform, upright=upright, content=content)
        except UnreadableError as error:
            found = str(error)
        yield key, found
