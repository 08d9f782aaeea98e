"""`tokenreduce eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenreduce.cli.arguments import (
    MODEL_HELP,
    Device,
    Exif,
    Flops,
    JsonFile,
    Keep,
    Options,
    PerBlock,
    Ratio,
    Resume,
    keep_arms,
    make_arms,
    progress_bar,
    refuse_options,
    usable_device,
)
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.schedules import Schedules, with_files
from tokenreduce.cli.writing import write_json
from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.asked import load_asked
from tokenreduce.lab.data.photographs import NAME as PHOTOGRAPHS
from tokenreduce.lab.data.samples import TASKS
from tokenreduce.lab.environment import place_name
from tokenreduce.lab.quality.dense_metrics import ALIGNMENTS
from tokenreduce.lab.quality.evaluation import classification, dense
from tokenreduce.lab.quality.loading import Head, Setup
from tokenreduce.lab.quality.sharing import Sharing
from tokenreduce.lab.quality.vision_language import EXACT, MEANING, measure_answers
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.vision_language import SCENES, load_prompted
from tokenreduce.lab.team import join_team

WORDS = 20  # of an answer about a photograph
SAID = "method budget kl kl_interval top1_agreement top1_agreement_interval kv_share"
RIGHT = "method budget exact exact_interval change change_interval"


def evaluate(
    task: Annotated[str, typer.Option(help=f"classification, {', '.join(TASKS)}, vlm")] = "classification",
    model: Annotated[
        str | None, typer.Option(help=f"{MODEL_HELP}; default: the shipped model of the task, if there is one")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="classification: fashion-mnist (default), photographs (default of dinov2_small), imagenet, or a "
            "folder of class folders or of images; segmentation: scenes (default), ade20k, cityscapes; "
            "detection: scenes (default), coco; depth: nyuv2; vlm: photographs (default), scenes (of scene_vlm), a "
            "folder of images, or a .jsonl file with image, question and, where known, answers"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder of the data in their official layout, or of all of Fashion-MNIST")
    ] = None,
    all_images: Annotated[bool, typer.Option(help="Fashion-MNIST: all 10,000 test images, not 2,000")] = False,
    method: Annotated[str | None, typer.Option(help="methods, separated by commas; default: tome")] = None,
    flops: Flops = None,
    ratio: Ratio = None,
    r: PerBlock = None,
    keep: Keep = None,
    schedule: Schedules = None,
    option: Options = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="default: 100 in classification, 8 in other tasks")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="use only so many images, evenly spread; of photographs: cut so many squares (64)"),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="trained (default), knn (DINO protocol), zero-shot (CLIP), or none: errors of features alone, without "
            "labels (default where there are none)"
        ),
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="knn: class folders instead of the training split")] = None,
    gallery_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="knn: number of gallery images (default: 10,000; 0: all); they are encoded again for every row of the "
            "table",
        ),
    ] = None,
    text_embeddings_file: Annotated[
        Path | None, typer.Option("--text-embeddings", help="zero-shot: safetensors, tensor embeddings (classes, d)")
    ] = None,
    text_model: Annotated[str | None, typer.Option(help="zero-shot: NAME:PRETRAINED of open_clip")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="classification: side of the square input; default: the model's own size")
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    device: Device = "cpu",
    workers: Annotated[
        int | None, typer.Option(min=0, help="classification: processes that read image folders; default: 2")
    ] = None,
    align: Annotated[
        str, typer.Option(help=f"depth: how predictions are first fitted to the truth: {', '.join(ALIGNMENTS)}")
    ] = "none",
    rounds: Annotated[
        int, typer.Option(min=0, help="dense tasks: bootstrap rounds for 95 % intervals of the change; 0: none")
    ] = 0,
    words: Annotated[
        int | None, typer.Option(min=1, help="vlm: words of an answer at most; default: 20, of scene_vlm 3")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help='vlm: asked of images that bring none; default: "Describe this image."')
    ] = None,
    exif: Exif = True,
    reduced_labels: Annotated[
        bool, typer.Option("--reduced-labels", help="ade20k: files hold 0 to 149 and 255 instead of 0 to 150")
    ] = False,
    resume: Resume = None,
    json_file: JsonFile = None,
) -> None:
    """Measure patched models on images. Classification: how far features are from those of the unpatched model and,
    where images have labels, accuracy. Segmentation, detection and depth: the usual figures of each task. vlm: how far
    answers of vision-language models are from those of the unpatched model and, where they are known, how many are
    right. Started by torchrun, several processes share the images (but with vlm)."""
    if task not in ("classification", *TASKS, "vlm"):
        raise unknown("task", task, ("classification", *TASKS, "vlm"))
    of_images: dict[str, object] = {"--all-images": all_images, f"--head {head}": head, "--gallery": gallery}
    of_images |= {"--gallery-size": gallery_size is not None, "--text-embeddings": text_embeddings_file}
    of_images |= {"--text-model": text_model, "--workers": workers is not None, "--image-size": image_size}
    budgets = {"flops": flops, "ratio": ratio, "r": r}
    if task == "vlm":
        foreign = of_images | {f"--{name}": value for name, value in budgets.items()} | {"--data-dir": data_dir}
        foreign |= {f"--rounds {rounds}": rounds, "--resume": resume}
        refuse_options(task, foreign | {f"--align {align}": align != "none", "--reduced-labels": reduced_labels})
        place = usable_device(device)
        setup = Setup(model, data, None, limit, batch_size, pretrained, place, exif)
        arms = with_files(
            schedule,
            [method, keep, option],
            lambda: keep_arms("tome" if method is None else method, keep, option or []),
            language=True,
        )
        evaluate_vlm(setup, arms, words, question, json_file)
        return
    refuse_options(task, {"--keep": keep, "--words": words, "--question": question})
    arms = with_files(
        schedule,
        [method, option, *budgets.values()],
        lambda: make_arms("tome" if method is None else method, budgets, option or []),
    )
    with join_team() as team:
        place = team.place(usable_device(device))
        sharing = Sharing(team, resume)
        setup = Setup(
            model, data, data_dir, limit, batch_size, pretrained, place, exif, reduced_labels, sharing, image_size
        )
        if task == "classification":
            foreign = {f"--align {align}": align != "none", f"--rounds {rounds}": rounds}
            refuse_options(task, foreign | {"--reduced-labels": reduced_labels})
            size = Head.gallery_size if gallery_size is None else gallery_size
            chosen = Head(head, gallery, size, text_embeddings_file, text_model)
            ready = classification(
                arms, setup, chosen, all_images=all_images, workers=2 if workers is None else workers
            )
        else:
            foreign = of_images | {"--no-exif": not exif}
            refuse_options(task, foreign | {f"--align {align}": align != "none" and task != "depth"})
            ready = dense(task, arms, setup, align=align, rounds=rounds)
        with progress_bar(team.leads) as progress:
            rows = ready.measure(progress)
    if not team.leads:
        return
    print_table(rows, ready.title)
    console.print(ready.meaning, highlight=False)
    for remark in ready.remarks:
        console.print(remark, style="yellow", highlight=False)
    print_refused(rows)
    if json_file is not None:
        write_json(json_file, "eval", rows, **ready.settings, device=place_name(place))


def evaluate_vlm(
    setup: Setup, arms: Sequence[Arm], words: int | None, question: str | None, json_file: Path | None
) -> None:
    """Measure what vision-language models lose."""
    model = setup.model or SCENES
    data = setup.data or ("scenes" if model == SCENES else PHOTOGRAPHS)
    if model == SCENES and data != "scenes":
        raise InvalidValueError(f"{SCENES} answers questions about scenes alone; leave out --data {data}")
    asked = load_asked(data, setup.limit, question, setup.upright)
    for sentence in asked.left_out:
        console.print(f"left out: {sentence}", style="yellow", highlight=False)
    prompted = load_prompted(model, setup.pretrained)
    prompted.model.to(setup.device)
    batch_size, words = setup.batch_size or 8, words or (3 if model == SCENES else WORDS)
    with progress_bar() as progress:
        rows = measure_answers(prompted, arms, asked, batch_size=batch_size, words=words, progress=progress)
    measured = [row for row in rows if "refused" not in row]
    print_table(part(measured, SAID), f"{model}, {len(asked.text)} prompts of {asked.name}")
    if asked.answers is not None:
        print_table(part(measured, RIGHT), "right answers")
    console.print(MEANING if asked.answers is None else f"{EXACT}; {MEANING}", highlight=False)
    print_refused(rows)
    if json_file is not None:
        settings: dict[str, Any] = {"task": "vlm", "model": model, "pretrained": setup.pretrained, "data": asked.name}
        settings |= {"prompts": len(asked.text), "batch_size": batch_size, "words": words, "question": question}
        settings |= {"dtype": str(prompted.model.dtype).removeprefix("torch.")}
        settings |= {"left_out": list(asked.left_out)}
        write_json(json_file, "eval", rows, **settings, upright=setup.upright, device=place_name(setup.device))


def part(rows: Sequence[Row], keys: str) -> list[Row]:
    """The rows with these keys: all do not fit one terminal line."""
    return [{key: row[key] for key in keys.split()} for row in rows]
