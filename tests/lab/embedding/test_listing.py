"""Collections as parts: folders, tar files and Parquet tables hold the same images; what holds none is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.inputs import fashion_input
from tokenreduce.lab.embedding.listing import parts_of
from tokenreduce.lab.embedding.reading import inputs_of
from tokenreduce.lab.embedding.stages import Work, read
from tokenreduce.lab.embedding.store import Store

pa = pytest.importorskip("pyarrow", reason="collections are NOT TESTED: pip install 'tokenreduce[ray]'")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (28, 28), shade).save(file, "PNG")
    return file.getvalue()


CONTENT = {f"{'ab'[i % 2]}/{i}.png": encoded(20 * i) for i in range(7)} | {"b/9.PNG": b"no picture"}


def write_folder(folder: Path) -> Path:
    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "a" / "notes.txt").write_text("none")
    return folder


def write_tar(file: Path) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content in {**CONTENT, "a/1.json": b"{}"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def write_table(file: Path, wrap: bool = False) -> Path:
    values: list[Any] = [{"bytes": one, "path": "x.png"} if wrap else one for one in CONTENT.values()]
    table = pa.table({"label": list(range(len(values))), "image": values, "other": [b"x"] * len(values)})
    pq.write_table(table, file, row_group_size=5)
    return file


def read_all(data: Path, size: int, column: str | None = None) -> dict[str, Tensor | str]:
    """What all parts give, each as it comes back from JSON."""
    found: dict[str, Tensor | str] = {}
    for part in parts_of(data, size, column):
        read = list(inputs_of(json.loads(json.dumps(part)), fashion_input, True))
        assert 0 < len(read) == part["count"] <= size
        assert not found.keys() & dict(read).keys()
        found |= dict(read)
    return found


def test_every_kind_of_collection_gives_the_same_images(tmp_path: Path) -> None:
    found = read_all(write_folder(tmp_path / "folder"), 3)
    assert list(found) == sorted(CONTENT)  # natural order: 9.PNG is last
    shards, tables = tmp_path / "shards", tmp_path / "tables"
    shards.mkdir()
    tables.mkdir()
    others = [read_all(write_tar(tmp_path / "one.tar"), 3), read_all(write_table(tmp_path / "one.parquet"), 3)]
    write_tar(shards / "0.tar")
    write_tar(shards / "1.tar")
    write_table(tables / "0.parquet", wrap=True)
    assert [len(read_all(folder, 3)) for folder in (shards, tables)] == [16, 8]
    others += [read_all(tables, 4, "image")]
    assert list(others[0]) == [f"one.tar/{name}" for name in CONTENT]
    assert list(others[1]) == [f"one.parquet/{row}" for row in range(8)]
    for other in others:
        for name, value in zip(CONTENT, other.values(), strict=True):
            mine = found[name]
            if isinstance(mine, str):
                assert isinstance(value, str) and "is not an image that Pillow can read" in value
            else:
                assert isinstance(value, Tensor) and torch.equal(value, mine)


def test_a_collection_is_listed_the_same_each_time(tmp_path: Path) -> None:
    for data in (
        write_folder(tmp_path / "folder"),
        write_tar(tmp_path / "one.tar"),
        write_table(tmp_path / "t.parquet"),
    ):
        assert list(parts_of(data, 3)) == list(parts_of(data, 3))


def test_what_holds_no_images_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(data: Path, sentence: str, size: int = 3, column: str | None = None) -> None:
        with pytest.raises(InvalidValueError, match=sentence):
            list(parts_of(data, size, column))

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"empty holds no images; give a folder with \.jpg or \.png files")
    (empty / "notes.txt").write_text("none")
    refused(empty, "empty holds no images")
    refused(empty / "notes.txt", r"is no folder, and no \.tar or \.parquet file")
    refused(tmp_path / "nothing", "no data .*nothing.*; give a folder of images")
    refused(empty, "the part size is 0", size=0)
    (tmp_path / "half.tar").write_bytes(write_tar(tmp_path / "whole.tar").read_bytes()[:700])
    refused(tmp_path / "half.tar", "half.tar is not a whole, uncompressed tar file")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    refused(tmp_path / "packed.tar", "not a whole, uncompressed tar file")
    (tmp_path / "no.parquet").write_text("none")
    refused(tmp_path / "no.parquet", "is no Parquet file")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    refused(tmp_path / "labels.parquet", "has no column of bytes, but label")
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"]}), tmp_path / "two.parquet")
    refused(tmp_path / "two.parquet", r"2 columns that can hold images \(left, right\); name one with --column")
    refused(tmp_path / "two.parquet", "there is no column 'middle'; columns that can hold images", column="middle")
    refused(tmp_path / "labels.parquet", "column 'label' holds no bytes", column="label")


def test_a_picture_that_does_not_fit_is_told_with_its_size(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "small.png")

    def transform(picture: Image.Image) -> Tensor:
        raise ValueError("too small")

    [part] = parts_of(tmp_path, 3)
    [(key, reason)] = inputs_of(part, transform, True)
    assert key == "small.png" and isinstance(reason, str)
    assert "small.png (3 x 2 pixels) does not fit the model's transform: too small" in reason


def test_a_name_that_a_tar_holds_twice_gives_two_keys(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for name, shade in (("a.png", 1), ("a.png", 2), ("a#2.png", 3), ("a.png", 4)):
            member = tarfile.TarInfo(name)
            member.size = len(encoded(shade))
            archive.addfile(member, io.BytesIO(encoded(shade)))
    found = read_all(tmp_path / "one.tar", 3)
    assert list(found) == [f"one.tar/{name}" for name in ("a.png", "a#2.png", "a#2#2.png", "a#3.png")]
    for one, other in zip(found.values(), map(encoded, (1, 2, 3, 4)), strict=True):
        assert torch.equal(torch.as_tensor(one), fashion_input(Image.open(io.BytesIO(other))))


def test_other_files_may_lie_beside_shards(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "0.tar")
    (shards / "README.md").write_text("about")
    assert len(read_all(shards, 3)) == 8
    write_table(shards / "0.parquet")
    with pytest.raises(InvalidValueError, match="all of one kind and without folders beside them"):
        list(parts_of(shards, 3))
    (shards / "0.parquet").unlink()
    write_folder(shards / "images")
    assert list(read_all(shards, 3)) == [f"images/{name}" for name in sorted(CONTENT)]


def test_names_that_are_not_utf_8_become_keys_that_parquet_takes(tmp_path: Path) -> None:
    root = tmp_path / "odd"
    root.mkdir()
    for name, content in ((b"\xff.png", encoded(9)), (b"\xfe.png", b"no picture")):
        (root / os.fsdecode(name)).write_bytes(content)
    found = read_all(root, 3)
    assert list(found) == [r"\udcfe.png", r"\udcff.png"] and pa.array(list(found), pa.string())
    reason = found[r"\udcfe.png"]
    assert isinstance(reason, str) and reason.encode() and r"\udcfe.png is not an image" in reason


def test_whatever_the_transform_raises_the_image_is_bad(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "small.png")

    def transform(picture: Image.Image) -> Tensor:
        raise KeyError("odd")

    [part] = parts_of(tmp_path, 3)
    [(_, reason)] = inputs_of(part, transform, True)
    assert isinstance(reason, str) and "does not fit the model's transform: 'odd'" in reason


def test_inputs_of_another_shape_are_bad(tmp_path: Path) -> None:
    """What a part is for the model: the odd one would end the run, and every run after it."""
    for name, size in (("a.png", (4, 4)), ("b.png", (4, 6))):
        Image.new("L", size).save(tmp_path / name)
    store = Store(tmp_path / "out")
    store.begin({}, parts_of(tmp_path, 3))

    def transform(picture: Image.Image) -> Tensor:
        return torch.zeros(1, picture.height, picture.width)

    work = Work(store, transform, True, (1, 4, 4), 8, "features", 2, {})
    row = read({"part": [0], "place": [0]}, work)
    assert json.loads(row["keys"][0]) == ["a.png"] and len(row["inputs"][0]) == 16 * 4
    [(key, reason)] = json.loads(row["bad"][0])
    assert key == "b.png" and "makes (1, 6, 4) of it, not (1, 4, 4)" in reason
    store.write(0, ["a.png"], np.zeros((1, 8), np.float32), [(key, reason)], {})
    assert store.close(2, 1) == [(key, reason)]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidValueError, match=r"--out .*file/out could not be written"):
        Store(tmp_path / "file" / "out").begin({}, parts_of(tmp_path, 3))

    def closed(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(InvalidValueError, match=r"cannot be read \(Permission denied\)") as told:
        Store(tmp_path / "out").begin({}, parts_of(tmp_path, 3))
    assert "--out" not in str(told.value)


def test_a_list_that_is_gone_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    store.begin({}, parts_of(write_folder(tmp_path / "images"), 8))
    (tmp_path / "out" / "_listing.jsonl").unlink()
    with pytest.raises(
        InvalidValueError, match=r"_listing.jsonl, the list of the images, cannot be read \(No such file"
    ):
        list(store.places())
