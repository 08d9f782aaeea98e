"""`tokenreduce embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenreduce.cli.arguments import MODEL_HELP, Exif, JsonFile, make_arms, progress_bar
from tokenreduce.cli.output import console
from tokenreduce.cli.writing import check_folder, write_json
from tokenreduce.errors import InvalidTypeError, unknown
from tokenreduce.lab.embedding.embedding import embed as embed_collection
from tokenreduce.lab.embedding.pooling import POOLS
from tokenreduce.lab.embedding.store import BAD

SHOWN = 10  # bad images that are named; the file names all


def embed(
    data: Annotated[
        Path, typer.Option(help="a folder of images at any depth, a .tar or .parquet file, or a folder of these")
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="folder for the features, as Parquet", callback=check_folder)],
    method: Annotated[str | None, typer.Option(help="method; without one the model is not patched")] = None,
    flops: Annotated[str | None, typer.Option(help="fraction of the multiply-adds left, such as 0.6")] = None,
    ratio: Annotated[str | None, typer.Option(help="fraction of the image tokens removed, such as 0.5")] = None,
    r: Annotated[str | None, typer.Option("--r", help="image tokens removed in every block")] = None,
    schedule: Annotated[Path | None, typer.Option(help="instead: a file of calibrate, which names the method")] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value of the method; repeatable")] = None,
    pool: Annotated[
        str,
        typer.Option(help="features (what the head reads), class (the class token) or mean (of the image tokens)"),
    ] = "features",
    column: Annotated[str | None, typer.Option(help="Parquet: the column that holds the images' bytes")] = None,
    part_size: Annotated[int, typer.Option(min=1, help="images in a file, and done again after a kill")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="images that the model sees at once")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: GPUs where the cluster has some")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="models that run at once; default: one a GPU, or one a core")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster that runs: HOST:PORT, ray://HOST:PORT or auto; else one is made")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="side of the square input")] = None,
    exif: Exif = True,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    json_file: JsonFile = None,
) -> None:
    """Write a feature for each image of a large collection, on all GPUs or cores of this machine or of a Ray cluster
    (extra 'ray'). The same command goes on where it was killed: no image is left out or there twice."""
    if device not in ("auto", "cpu", "cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    chosen = read_method(method, {"flops": flops, "ratio": ratio, "r": r}, option or [], schedule)
    with progress_bar() as progress:
        found = embed_collection(
            data, model, out, pool=pool, column=column, part_size=part_size, batch_size=batch_size,
            device=None if device == "auto" else device, workers=workers, address=address, image_size=image_size,
            pretrained=pretrained, upright=exif, progress=progress, **chosen,
        )  # fmt: skip
    if found.before:
        console.print(
            f"{found.before} of {found.parts} parts were there, by the list of the first run", highlight=False
        )
    console.print(f"wrote {out}: {found.records} records in {found.parts} parts", highlight=False)
    if found.bad:
        console.print(f"{len(found.bad)} images cannot be read, see {out / BAD}:", style="yellow", highlight=False)
    for _, why in found.bad[:SHOWN]:
        console.print(why, style="yellow", highlight=False)
    if json_file is not None:
        row = {"records": found.records, "parts": found.parts, "parts_before": found.before, "bad": len(found.bad)}
        settings: dict[str, Any] = {"data": data, "model": model, "out": out, "pool": pool, "pretrained": pretrained}
        write_json(json_file, "embed", [row], **settings, image_size=image_size, patch=chosen)


def read_method(
    method: str | None, budgets: dict[str, str | None], options: list[str], schedule: Path | None
) -> dict[str, Any]:
    """The arguments of `patch`; none where the model stays as it is."""
    given = [f"--{name}" for name, value in budgets.items() if value is not None]
    if schedule is not None:
        others = given + (["--method"] if method is not None else []) + (["--option"] if options else [])
        if others:
            raise InvalidTypeError(f"--schedule says all of the method; leave {' and '.join(others)} out")
        return {"schedule": str(schedule)}
    if method is None:
        if given or options:
            raise InvalidTypeError(f"{' and '.join(given or ['--option'])} needs --method, such as --method ward")
        return {}
    arms = make_arms(method, budgets, options)
    if len(arms) != 1:
        raise InvalidTypeError(f"--method {method} with {', '.join(given)} are {len(arms)} choices; give one")
    return {"method": arms[0].method, **arms[0].arguments}
