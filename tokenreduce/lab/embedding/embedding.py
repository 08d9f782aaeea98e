"""Features of a large collection of images, written as Parquet by the workers of a Ray cluster."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.data.inputs import image_transform
from tokenreduce.lab.embedding.cluster import cluster
from tokenreduce.lab.embedding.listing import parts_of
from tokenreduce.lab.embedding.pooling import try_out
from tokenreduce.lab.embedding.stages import Embedder, Work, read
from tokenreduce.lab.embedding.store import Store
from tokenreduce.lab.environment import installed
from tokenreduce.lab.journal import digest_of_method, digest_of_model
from tokenreduce.lab.pretrained import first_line
from tokenreduce.lab.rows import Progress
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.patching.finding import is_patched, reduction_of
from tokenreduce.patching.verbs import change_patch, patch

DEVICES = ("cpu", "cuda")
BLOCKS = 10_000  # of Ray; beyond it a block holds several parts
MOST = 2**31 - 1  # bytes of a part that Arrow takes in one piece
# Of a core: on CPUs as many parts are read as models run, and both shares fit on every core.
MODEL, READER = 0.75, 0.25


@dataclass(frozen=True)
class Embedded:
    """What is in the folder: how many records and parts, how many of these were there before, and the images that are
    not, with the reason."""

    records: int
    parts: int
    before: int
    bad: list[tuple[str, str]]


def embed(
    data: str | Path,
    model: str | nn.Module,
    out: str | Path,
    *,
    method: str | None = None,
    pool: str = "features",
    column: str | None = None,
    part_size: int = 256,
    batch_size: int = 32,
    device: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    upright: bool = True,
    progress: Progress | None = None,
    **arguments: Any,
) -> Embedded:
    """Write a feature for each image of `data` to Parquet files in `out`, with the columns `key` (string) and `feature`
    (float32 list of fixed size). The same call goes on where an earlier one was killed.

    Args:
        data: a folder of images at any depth, a tar file (WebDataset) or Parquet file, or a folder of these.
        model: a name as the command line takes it, or a model that is in memory, which takes neither `image_size` nor
            `pretrained`. Workers get it from here.
        method: how it is patched, with `arguments` as `patch` takes them; nothing is patched without any.
        pool: "features", "class" or "mean"; see `pooled`.
        column: of Parquet: which column holds the images, as the bytes of their files.
        part_size: images of one file; so many are done again after a kill.
        device: "cpu" or "cuda"; GPUs where the cluster has some.
        workers: models that run at once; one for each GPU or core of the cluster.
        address: of a Ray cluster that runs already; else one is started on this machine, and ended.

    Raises: ValueError if there are no images, model, method and pool do not fit, the cluster is not there, or `out`
        holds other features.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise InvalidValueError(f"batch_size is {batch_size} and workers is {workers}; both must be 1 or more")
    if device not in (None, *DEVICES):
        raise unknown("device", device, DEVICES)  # which GPU is for Ray to say
    source, store = Path(data).resolve(), Store(Path(out).resolve())
    network, named = prepare(model, image_size, pretrained, pool, method, arguments)
    transform = image_transform(network)
    # A copy runs: of some models what a forward leaves behind, such as hooks of transformers, cannot go to workers.
    shape, channels = try_out(copy.deepcopy(network), transform, pool)
    if part_size * 4 * torch.Size(shape).numel() > MOST:
        raise InvalidValueError(f"part_size is {part_size}, too many images of {shape} for one part; give fewer")
    settings = {"data": str(source), "column": column, "part_size": part_size, "upright": upright, **named}
    if is_patched(network) and reduction_of(network).adaptive:  # counts follow the batch
        settings["batch_size"] = batch_size
    manifest = store.begin(settings, parts_of(source, part_size, column))
    work = Work(store, transform, upright, shape, channels, pool, batch_size, settings)
    before = store.finished()
    waiting = [{"part": n, "place": at} for n, at in enumerate(store.places()) if n not in before]
    if waiting:
        with cluster(address) as ray:
            for done, _ in enumerate(run(ray, network, work, waiting, device, workers), len(before)):
                if progress is not None:
                    progress((done + 1) / manifest["parts"], f"{manifest['images']} images")
    bad = store.close(manifest["images"], manifest["parts"])
    if len(bad) == manifest["images"]:
        raise InvalidValueError(f"none of the {len(bad)} images can be read; the first: {bad[0][1]}")
    return Embedded(manifest["images"] - len(bad), manifest["parts"], len(before), bad)


def prepare(
    model: str | nn.Module, image_size: int | None, pretrained: bool, pool: str, method: str | None, arguments: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """The model, patched, in eval mode on the CPU, and the settings that say what it computes."""
    named = isinstance(model, str)
    if not named and (image_size is not None or not pretrained):
        raise InvalidTypeError("image_size and pretrained are for models by name; change the model that is given")
    network: Any = load_model(model, image_size, pretrained)[0] if isinstance(model, str) else copy.deepcopy(model)
    network = network.eval().to("cpu")
    told: dict[str, Any] = {"model": model if named else type(model).__name__, "image_size": image_size}
    told |= {"weights": digest_of_model(network), "pool": pool}
    if method is not None or "schedule" in arguments:
        patch(network, method, **arguments)
    elif arguments:
        raise InvalidTypeError(f"{', '.join(arguments)} needs a method to patch with, such as method='ward'")
    if pool == "mean" and is_patched(network):
        restoring = dataclasses.replace(reduction_of(network).restoring, ends=True)
        network = change_patch(network, restoring=restoring)
    patched = reduction_of(network).to_json() if is_patched(network) else None
    told |= {"patch": patched, "code": digest_of_method(patched["method"])[:16] if patched else None}
    return network, told | {"versions": installed()}


def run(
    ray: Any, network: nn.Module, work: Work, waiting: list[dict[str, int]], device: str | None, workers: int | None
) -> Iterator[int]:
    """The numbers of parts as they are written."""
    from ray.data import ActorPoolStrategy

    there = ray.cluster_resources()
    device = device or ("cuda" if there.get("GPU", 0) >= 1 else "cpu")
    most = int(there.get("GPU" if device == "cuda" else "CPU", 0))
    if most < 1 or (workers or 1) > most:
        raise InvalidValueError(
            f"the cluster has {most} {device} workers, {workers or 'some'} were asked for; give fewer"
        )
    size = min(workers or most, len(waiting))
    on_gpu = device == "cuda"
    held = send(ray, network)  # once, and not with each task; the reference must outlive the workers that are restarted
    parts = ray.data.from_items(waiting, override_num_blocks=min(len(waiting), BLOCKS))
    inputs = parts.map_batches(partial(read, work=work), batch_size=1, num_cpus=1 if on_gpu else READER)
    done = inputs.map_batches(
        Embedder,
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        fn_constructor_args=([held], work, device),
        **({"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": MODEL}),
    )
    try:
        for row in done.iter_rows():
            yield int(row["part"])
    except ray.exceptions.RayError as error:
        raise InvalidValueError(
            f"a worker failed ({cause_of(error)}); what is written stays: mend the cause and give the same command "
            "again"
        ) from error


def send(ray: Any, network: nn.Module) -> Any:
    """A reference to the model for workers.

    Raises: ValueError if it holds what cannot be sent.
    """
    try:
        return ray.put(network)
    except TypeError as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise InvalidValueError(
            f"this {type(network).__name__} cannot be sent to workers ({reason}); give the model by name, or as it was "
            "before its first forward, which may have left hooks in it"
        ) from None


def cause_of(error: Exception) -> str:
    """What went wrong in a worker: the first error of the traceback that Ray tells, which ends in its own advice."""
    told = str(error).strip()
    named = re.search(r"^[\w.]*(?:Error|Exception)\b.*", told, re.MULTILINE)
    return named[0] if named else told.splitlines()[-1]
