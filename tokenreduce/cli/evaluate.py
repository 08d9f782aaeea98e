"""`tokenreduce eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from tokenreduce.cli.arguments import MODEL_HELP, make_arms, place_name, progress_bar, usable_device
from tokenreduce.cli.dense import evaluate_dense, refuse_options
from tokenreduce.cli.output import Row, console, print_refused, print_table, write_json
from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.folders import Data, check_labels, load_data, load_gallery
from tokenreduce.lab.data.samples import TASKS
from tokenreduce.lab.lanes import patched_lane, restored_lane
from tokenreduce.lab.quality.classification import DEFINITIONS, Patched, measure
from tokenreduce.lab.quality.dense_metrics import ALIGNMENTS
from tokenreduce.lab.quality.heads import MakeHead, NearestNeighbours, ZeroShot, text_embeddings, trained
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.patching.finding import find_backbone

HEADS = ("trained", "knn", "zero-shot")


def evaluate(
    task: Annotated[str, typer.Option(help=f"classification, {', '.join(TASKS)}")] = "classification",
    model: Annotated[
        str | None, typer.Option(help=f"{MODEL_HELP}; default: the shipped model of the task, if there is one")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="classification: fashion-mnist (default), imagenet, or a folder of class folders; "
            "segmentation: scenes (default), ade20k, cityscapes; detection: scenes (default), coco; depth: nyuv2"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="where the data lie in their official layout, or all of Fashion-MNIST")
    ] = None,
    all_images: Annotated[bool, typer.Option(help="Fashion-MNIST: all 10,000 test images, not 2,000")] = False,
    method: Annotated[str, typer.Option(help="methods, separated by commas")] = "tome",
    flops: Annotated[str | None, typer.Option(help="fractions of the multiply-adds left, such as 0.8,0.6")] = None,
    ratio: Annotated[str | None, typer.Option(help="fractions of the image tokens removed, such as 0.5")] = None,
    r: Annotated[str | None, typer.Option("--r", help="image tokens removed in every block, such as 8,13")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value for a single method, method.key=value among several; repeatable")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="default: 100 in classification, 8 in other tasks")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use so many images, spread evenly over the data")] = None,
    head: Annotated[str, typer.Option(help="trained, knn (DINO protocol) or zero-shot (CLIP)")] = "trained",
    gallery: Annotated[Path | None, typer.Option(help="knn: class folders instead of the training split")] = None,
    gallery_size: Annotated[int, typer.Option(min=0, help="knn: gallery images, encoded once a row; 0: all")] = 10_000,
    text_embeddings_file: Annotated[
        Path | None, typer.Option("--text-embeddings", help="zero-shot: safetensors, tensor embeddings (classes, d)")
    ] = None,
    text_model: Annotated[str | None, typer.Option(help="zero-shot: NAME:PRETRAINED of open_clip")] = None,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="classification: processes that read image folders")] = 2,
    align: Annotated[
        str, typer.Option(help=f"depth: what makes predictions fit the truth first: {', '.join(ALIGNMENTS)}")
    ] = "none",
    rounds: Annotated[
        int, typer.Option(min=0, help="dense tasks: bootstrap rounds for 95 % intervals of the change; 0: none")
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")] = None,
) -> None:
    """Accuracy of patched models on labelled images: classification, and how far their features are from the unpatched
    model's; or segmentation, detection and depth."""
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    arms = make_arms(method, {"flops": flops, "ratio": ratio, "r": r}, option or [])
    place = usable_device(device)
    if task != "classification":
        foreign = {"--all-images": all_images, "--gallery": gallery, "--text-model": text_model}
        foreign |= {"--text-embeddings": text_embeddings_file, f"--head {head}": head != "trained"}
        refuse_options(task, foreign)
        evaluate_dense(
            task,
            model,
            data,
            arms,
            place,
            data_dir=data_dir,
            batch_size=batch_size or 8,
            limit=limit,
            pretrained=pretrained,
            align=align,
            rounds=rounds,
            json_file=json_file,
        )
        return
    refuse_options(task, {f"--align {align}": align != "none", f"--rounds {rounds}": rounds})
    model, data, batch_size = model or "fashion_vit", data or "fashion-mnist", batch_size or 100
    network = load_model(model, None, pretrained)[0].eval().to(place)
    patched, refused = prepare(network, arms)
    images = load_data(data, network, data_dir=data_dir, all_images=all_images, limit=limit)
    make_head: MakeHead = trained
    settings: dict[str, Any] = {"model": model, "pretrained": pretrained, "data": data, "images": len(images)}
    settings |= {"head": head, "device": place_name(place), "batch_size": batch_size}
    if head == "trained":
        check_labels(images, network)
    elif head == "zero-shot":
        make_head = ZeroShot(text_embeddings(text_embeddings_file, text_model, images.class_names))
    else:
        found = load_gallery(images, network, data_dir=data_dir, gallery=gallery, limit=gallery_size or None)
        encoded = found.batches(batch_size, folder_workers(found, workers))
        make_head = NearestNeighbours(encoded, len(images.class_names))
        settings |= {"gallery": found.name, "gallery_images": len(found), "k": make_head.k}
    batches = images.batches(batch_size, folder_workers(images, workers))
    with progress_bar() as progress:
        watched = watch(batches, progress, f"{len(images)} images")
        rows = measure(network, patched, watched, len(images.class_names), make_head) + refused
    print_table(rows, f"{model}, {len(images)} images of {data}, head {head}")
    console.print(DEFINITIONS, highlight=False)
    print_refused(refused)
    if json_file is not None:
        write_json(json_file, "eval", rows, **settings)


def prepare(model: nn.Module, arms: Sequence[Arm]) -> tuple[list[Patched], list[Row]]:
    """The arms that the model can reach, and a row with the reason (`refused`) for each of the others.

    Raises: ValueError if it can reach none.
    """
    find_backbone(model)
    patched: list[Patched] = []
    refused: list[Row] = []
    for arm in arms:
        try:
            deployed = patched_lane(model, arm)
        except InvalidValueError as error:
            refused.append({"method": arm.method, "budget": arm.budget, "refused": str(error)})
            continue
        restored = restored_lane(model, arm)
        patched.append(Patched(arm.method, arm.budget, deployed, restored))
    if not patched:
        raise InvalidValueError("; ".join(row["refused"] for row in refused))
    return patched, refused


def watch(
    batches: Iterable[tuple[Tensor, Tensor]], progress: Callable[[float, str], None], what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, while the bar moves."""
    total = len(batches)  # type: ignore[arg-type]
    for done, batch in enumerate(batches):
        progress(done / total, what)
        yield batch


def folder_workers(data: Data, workers: int) -> int:
    """Worker processes pay for decoding files only; Fashion-MNIST is in memory."""
    return 0 if data.name == "fashion-mnist" else workers
