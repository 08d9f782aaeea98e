"""`Store`: the folder that the features are written to.

What makes a record be there exactly once: the collection is listed once, and the list is kept and cut into numbered
parts; a part is written under another name and renamed, which happens wholly or not at all; who goes on embeds the
parts that are not there. Parquet readers pass over names that begin with `_` or `.`, so the folder is a data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.embedding.listing import Part
from tokenreduce.lab.whole import flush, remove_unfinished, write_whole

MANIFEST, LISTING, BAD = "_manifest.json", "_listing.jsonl", "_bad.jsonl"


@dataclass(frozen=True)
class Store:
    """A folder of features; see `begin`."""

    folder: Path

    def begin(self, settings: dict[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
        """The manifest: `settings`, and how many `images` and `parts` there are. What began with the same settings goes
        on with its own list of images, and `parts` is not asked.

        Raises: ValueError if the folder holds something else.
        """
        settings = json.loads(json.dumps(settings))  # as it is read back
        if (self.folder / MANIFEST).exists():
            found = self.manifest()
            other = [
                key for key in {**found["settings"], **settings} if found["settings"].get(key) != settings.get(key)
            ]
            if other:
                told = "; ".join(f"{key}: {found['settings'].get(key)} there, {settings.get(key)} now" for key in other)
                raise InvalidValueError(
                    f"--out {self.folder} holds features that were made otherwise ({told}); give another folder"
                )
            return found
        if self.folder.is_dir() and any(self.folder.glob("*.parquet")):
            raise InvalidValueError(f"--out {self.folder} holds Parquet files of something else; give another folder")
        return self._list(settings, parts)

    def manifest(self) -> dict[str, Any]:
        """What `begin` kept."""
        try:
            return json.loads((self.folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise InvalidValueError(f"{self.folder / MANIFEST} cannot be read ({error}); give another folder") from None

    def _list(self, settings: dict[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
        """Write the list of images, then the manifest: what was killed before lists again."""
        waiting, images, digest, places = iter(parts), 0, hashlib.sha256(), [0]
        first = next(waiting)  # nothing is written where there are no images
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LISTING).open("wb") as file:
                for part in (part for source in ([first], waiting) for part in source):
                    line = json.dumps(part).encode() + b"\n"
                    file.write(line)
                    digest.update(line)
                    images += part["count"]
                    places.append(places[-1] + len(line))
                flush(file)
            made = {"settings": settings, "images": images, "parts": len(places) - 1, "listing": digest.hexdigest()}
            write_whole(self.folder / MANIFEST, json.dumps(made, indent=2) + "\n")
        return made

    def places(self) -> Iterator[int]:
        """Where the line of each part begins in the list."""
        place = 0
        try:
            with (self.folder / LISTING).open("rb") as file:
                for line in file:
                    yield place
                    place += len(line)
        except OSError as error:
            raise InvalidValueError(
                f"{self.folder / LISTING}, the list of the images, cannot be read ({error.strerror}); put it back, or "
                "begin anew in another folder"
            ) from None

    def part(self, place: int) -> Part:
        """The part whose line begins there."""
        with (self.folder / LISTING).open("rb") as file:
            file.seek(place)
            return json.loads(file.readline())

    def path(self, number: int) -> Path:
        """Where the features of a part lie."""
        return self.folder / f"part-{number:08}.parquet"

    def finished(self) -> set[int]:
        """The numbers of the parts that are there."""
        return {int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.parquet")}

    def write(
        self, number: int, keys: Sequence[str], features: np.ndarray, bad: Sequence[Any], about: dict[str, Any]
    ) -> None:
        """Write the features `(n, d)` of a part, and `[key, reason]` of the images that have none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
        columns = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, features.shape[1])]
        schema = pa.schema([("key", pa.string()), ("feature", columns[1].type)])
        kept = {"tokenreduce": json.dumps(about), "tokenreduce.part": str(number), "tokenreduce.bad": json.dumps(bad)}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(columns, schema=schema.with_metadata(kept)), sink)
        write_whole(self.path(number), sink.getvalue().to_pybytes())

    def close(self, images: int, parts: int) -> list[tuple[str, str]]:
        """Check that each image is there once, and write and return those that are bad, with the reason.

        Raises: ValueError if the files do not hold what was listed.
        """
        import pyarrow.parquet as pq

        bad: list[tuple[str, str]] = []
        rows, changed = 0, False
        for number in range(parts):
            found = pq.ParquetFile(self.path(number))
            rows += found.metadata.num_rows
            changed |= int(found.schema_arrow.metadata[b"tokenreduce.part"]) != number
            bad += [(key, why) for key, why in json.loads(found.schema_arrow.metadata[b"tokenreduce.bad"])]
        if changed or rows + len(bad) != images:
            raise InvalidValueError(
                f"{self.folder} holds {rows} records and {len(bad)} bad images of {images}: a file was changed; begin "
                "anew in another folder"
            )
        lines = [json.dumps({"key": key, "reason": why}) + "\n" for key, why in bad]
        with self._writing():
            write_whole(self.folder / BAD, "".join(lines))
            remove_unfinished(self.folder)
        return bad

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Where the folder cannot be written, the error is a sentence."""
        try:
            yield
        except OSError as error:
            raise InvalidValueError(f"--out {self.folder} could not be written ({error})") from None
