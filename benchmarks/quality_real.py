"""Every method at equal compute on a real model: DINOv2 ViT-S/14 with a saliency head, on squares of photographs.

`quality.py --model dinov2_small` runs it. Arms are measured one by one, and the results file is written after each.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arm_files import Found, fingerprint, read, save
from quotients import DRAWS, of_tome, source_weights
from torch import Tensor, nn

import tokenreduce
from tokenreduce.cli.arguments import progress_bar
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.photographs import COUNT, photographs
from tokenreduce.lab.data.photographs import sources as installed
from tokenreduce.lab.data.plain_folders import NO_LABEL, list_plain
from tokenreduce.lab.environment import environment
from tokenreduce.lab.quality.features import Batch, Features, unlabelled_lanes
from tokenreduce.lab.shipped import dinov2_small

SIZE = 224
FEW = ("ward", "tome", "atc", "pitome", "random")  # what other sizes are measured with: an image of 518 costs eight
FEW_COUNT = 9  # one of each photograph
BATCH_PIXELS = 16 * SIZE**2
ERRORS = ("class_error", "token_error", "saliency_error")


def measure(args: Namespace, budgets: Sequence[float], runs: Path, results: Path) -> None:
    """Measure the arms that are not there yet; writes `quality_real.json`, for another size than 224 with the size in
    its name. Where `args` names methods, no others are measured, and those that are there already stay in the file."""
    started, name = time.perf_counter(), args.name or result_name(args.size)
    count = args.count or (COUNT if args.size == SIZE else FEW_COUNT)
    files = dict([*chosen(args.photographs).items()][:count])
    squares, _ = photographs(count, args.size, files=files.values())
    sources = torch.arange(count) % len(files)  # the photographs take turns
    settings: dict[str, Any] = {"model": dinov2_small.NAME, "image_size": args.size, "images": count, "draws": DRAWS}
    settings |= {"photographs": list(files), "further": args.photographs is not None}
    about = {"environment": environment()}
    folder = runs / name / fingerprint(settings | {"bytes": [file.stat().st_size for file in files.values()]})
    folder.mkdir(parents=True, exist_ok=True)
    model, head = dinov2_small.dinov2_small(image_size=args.size), dinov2_small.saliency_head()
    batches, arms, found = normalised(squares), planned(args, budgets), []
    only = args.method.split(",") if args.method else methods_at(args.size)
    with progress_bar() as tell:
        tell(0, "unpatched")
        [full], _ = unlabelled_lanes(model, [], head)
        reference = [full.show(batch) for batch in batches]
        for number, arm in enumerate(arms):
            tell(number / len(arms), str(arm))
            file = folder / f"{arm.method}_{arm.arguments['flops']}.npz"
            if not file.exists():
                if arm.method not in ("tome", *only):
                    continue
                save(measure_arm(model, head, arm, batches, reference), file)
            found.append(read(file))
            rows = summarise(found, full.row(), sources)
            content = {**settings, **about, "arms_left": len(arms) - len(found), "rows": rows}
            (results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
            print(f"[{number + 1}/{len(arms)}] {sentence(rows[-1])}", flush=True)
    print(f"wrote {results / name}.json in {(time.perf_counter() - started) / 60:.1f} minutes")


def result_name(size: int) -> str:
    return "quality_real" if size == SIZE else f"quality_real_{size}"


def methods_at(size: int) -> list[str]:
    return tokenreduce.methods("encoder") if size == SIZE else list(FEW)


def planned(args: Namespace, budgets: Sequence[float]) -> list[Arm]:
    """All arms of this size; those of `tome` come first, because errors are given in multiples of its errors."""
    named = args.method.split(",") if args.method else []
    methods = dict.fromkeys(["tome", *methods_at(args.size), *named])
    return [Arm(name, flops=share) for name in methods for share in budgets]


def chosen(folder: Path | None) -> dict[str, Path]:
    """Photographs by name: those of the packages, and of the folder every image in it and the largest file below each
    of its folders, which hold one photograph in several sizes."""
    found = {path.stem: path for path in installed()}
    if folder is None:
        return found
    if not folder.is_dir():
        raise SystemExit(f"--photographs {folder} is no folder; give one that holds images")
    largest: dict[str, Path] = {}
    for path, _ in list_plain(folder).images:
        top = Path(path.relative_to(folder).parts[0]).stem
        if top not in largest or path.stat().st_size > largest[top].stat().st_size:
            largest[top] = path
    return found | largest


def normalised(squares: Tensor) -> list[Batch]:
    """Batches as the model takes them, without labels."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (dinov2_small.MEAN, dinov2_small.DEVIATION))
    images = (squares.float() / 255 - mean) / deviation
    size = max(1, BATCH_PIXELS // (squares.shape[-1] ** 2))
    return [(part, torch.full((len(part),), NO_LABEL)) for part in images.split(size)]


def measure_arm(
    model: nn.Module, head: nn.Module, arm: Arm, batches: Sequence[Batch], reference: Sequence[Features]
) -> Found:
    """What one arm costs and its errors of every image; a row with the reason if the model cannot reach the arm."""
    try:
        [_, lane], _ = unlabelled_lanes(model, [arm], head)
    except InvalidValueError as error:
        return {"row": {"method": arm.method, "budget": arm.budget, "refused": str(error)}}
    for batch, seen in zip(batches, reference, strict=True):
        lane.show(batch, seen)
    return {"row": lane.row(), **lane.metric.figures}


def summarise(arms: Sequence[Found], full: dict[str, Any], sources: Tensor) -> list[dict[str, Any]]:
    """Rows with mean errors, and errors over those of tome at the same budget with intervals over photographs."""
    weights = source_weights(sources)
    tome = {arm["row"]["budget"]: arm for arm in arms if arm["row"]["method"] == "tome"}
    rows = [{"method": "unpatched", "budget": None, "macs": full["macs"], "flops_share": 1.0}]
    for arm in arms:
        row = dict(arm["row"])
        if "refused" not in row:
            row["flops_share"] = row["macs"] / full["macs"]
            for name in ERRORS:
                row[name] = float(arm[name].mean())
                row |= of_tome(name, arm[name], tome[row["budget"]][name], weights)
        rows.append(row)
    return rows


def sentence(row: dict[str, Any]) -> str:
    """A row in words."""
    if "refused" in row:
        return f"{row['method']} at {row['budget']}: {row['refused']}"
    errors = (f"{name.removesuffix('_error')} {row[f'{name}_of_tome']:.2f}" for name in ERRORS)
    return f"{row['method']} at {row['budget']}: {', '.join(errors)} of tome's"
