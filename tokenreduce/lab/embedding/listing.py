"""What a collection holds, cut into parts: a part is what a worker reads, embeds and writes at once.

A part is plain data, so that it can be a line of JSON: the kind of its source, the file or folder, and which images of
it. The parts of a collection are the same each time it is listed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.class_folders import visible
from tokenreduce.lab.data.decoding import is_image, looking
from tokenreduce.lab.data.plain_folders import files_below

Part = dict[str, Any]
COLUMNS = ("image", "images", "jpg", "jpeg", "png", "bytes", "content", "data")  # names that hold images, best first


def parts_of(data: Path, size: int, column: str | None = None) -> Iterator[Part]:
    """The parts, with at most `size` images each, of a folder of images at any depth, a tar file, a Parquet file, or a
    folder that holds tar or Parquet files and no images or folders.

    Args:
        column: of Parquet: the column of images; else the only one that can hold them.

    Raises: ValueError if there are no images.
    """
    if size < 1:
        raise InvalidValueError(f"the part size is {size}; give the images of a part, 1 or more, such as 256")
    files, list_file = sources(data)
    some = False
    for file in files:
        for part in list_file(file, size, column):
            some = True
            yield part
    if not some:
        raise InvalidValueError(
            f"{data} holds no images; give a folder with .jpg or .png files at any depth, a .tar or .parquet file, or "
            "a folder of such files, all of one kind and without folders beside them"
        )


@looking()
def sources(data: Path) -> tuple[list[Path], Callable[[Path, int, str | None], Iterator[Part]]]:
    """The files, or the folder, that hold the images, and what lists one of them."""
    if not data.exists():
        raise InvalidValueError(f"no data {str(data)!r}; give a folder of images, a .tar file or a .parquet file")
    if data.is_file():
        if data.suffix not in LISTERS:
            raise InvalidValueError(
                f"{data} is no folder, and no .tar or .parquet file; give the folder that holds the images (tar files "
                "must not be compressed: workers go straight to their images)"
            )
        return [data], LISTERS[data.suffix]
    there = visible(data)
    kinds = {path.suffix for path in there} & LISTERS.keys()
    if len(kinds) == 1 and not any(path.is_dir() or is_image(path) for path in there):
        kind = kinds.pop()
        return [path for path in there if path.suffix == kind], LISTERS[kind]
    return [data], list_folder


def list_folder(root: Path, size: int, column: str | None) -> Iterator[Part]:
    """Paths below the folder, in natural order."""
    names = (path.relative_to(root).as_posix() for path in files_below(root) if is_image(path))
    while held := list(islice(names, size)):
        yield {"kind": "folder", "file": str(root), "images": held, "count": len(held)}


def list_tar(file: Path, size: int, column: str | None) -> Iterator[Part]:
    """Name, place and length of each image in a tar file, as WebDataset writes them; only headers are read."""
    seen: set[str] = set()
    try:
        with tarfile.open(file, "r:") as archive:
            found = (
                (told_apart(member.name, seen), member.offset_data, member.size)
                for member in archive_members(archive)
                if member.isfile() and is_image(Path(member.name))
            )
            while held := list(islice(found, size)):
                yield {"kind": "tar", "file": str(file), "images": held, "count": len(held)}
    except (tarfile.TarError, OSError) as error:
        raise InvalidValueError(
            f"{file} is not a whole, uncompressed tar file ({error}); write it again, or take it out"
        ) from None


def told_apart(name: str, seen: set[str]) -> str:
    """The name, with a number before its ending where an earlier member of the file has it too."""
    stem, _, ending = name.rpartition(".")
    names = chain([name], (f"{stem}#{number}.{ending}" for number in count(2)))
    found = next(one for one in names if one not in seen)
    seen.add(found)
    return found


def archive_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, forgotten once they were given: `tarfile` would keep them all."""
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def list_table(file: Path, size: int, column: str | None) -> Iterator[Part]:
    """Rows of the row groups of a Parquet file."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    try:
        table = pq.ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        raise InvalidValueError(f"{file} is no Parquet file that can be read ({error})") from None
    name = image_column(file, table.schema_arrow, column)
    before = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            place = {"group": group, "start": start, "stop": stop, "before": before}
            yield {"kind": "table", "file": str(file), "column": name, **place, "count": stop - start}
        before += rows


def image_column(file: Path, schema: Any, given: str | None) -> str:
    """The column of encoded images: bytes, or the struct with `bytes` in it that Hugging Face's datasets write."""
    fit = [field.name for field in schema if holds_bytes(field.type)]
    if given is not None and given not in fit:
        there = f"there is no column {given!r}" if given not in schema.names else f"column {given!r} holds no bytes"
        raise InvalidValueError(f"{file}: {there}; columns that can hold images: {', '.join(fit) or 'none'}")
    named = [name for name in COLUMNS if name in fit]
    found = [given] if given is not None else fit if len(fit) == 1 else named
    if not found:
        raise InvalidValueError(
            f"{file} has {len(fit)} columns that can hold images ({', '.join(fit) or 'none'}); name one with --column"
            if fit
            else f"{file} has no column of bytes, but {', '.join(schema.names)}; images are stored as bytes of files"
        )
    return found[0]


def holds_bytes(kind: Any) -> bool:
    """Whether an Arrow type is bytes, or a struct with a field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


LISTERS = {".tar": list_tar, ".parquet": list_table}
