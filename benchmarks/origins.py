"""Where each results file comes from: the command, the commit it ran at, and whether the code it measures has changed,
but for comments and docstrings of Python.

    python benchmarks/origins.py                      # all results; those older than their code are marked
    python benchmarks/origins.py measured NAME ...    # after a command wrote benchmarks/results/NAME.json

The second form writes benchmarks/origins.json. A test fails where a results file was replaced without it, or where a
page does not say that code has changed since. Rows that a resumed run kept say in `measured` at which commit they were
measured (`arm_files.stamp`), and the note below a table names all commits. A record may have a `note` of its own, typed
into benchmarks/origins.json, for what a reader must know of old figures; it goes when they are measured again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
from typing import Any

from code_digests import ROOT, digest, files_at, files_now, git

RESULTS = ROOT / "benchmarks" / "results"
FILE = ROOT / "benchmarks" / "origins.json"

METHODS = ("tokenreduce/budget", "tokenreduce/forward", "tokenreduce/maps", "tokenreduce/ops", "tokenreduce/reducers")
TIMM = (*METHODS, "patches/shared", "patches/timm")
SHIPPED = "tokenreduce/lab/shipped"
QUALITY = (*TIMM, SHIPPED, "tokenreduce/lab/quality")
REAL = (*QUALITY, "benchmarks/quality_real.py", "benchmarks/quotients.py")
DENSE = (*QUALITY, "tokenreduce/lab/data/scenes.py", "tokenreduce/models")
SEARCH = (*QUALITY, "tokenreduce/lab/search", "benchmarks/quotients.py")
ANSWERS = (*METHODS, "patches/shared", "patches/vision_language", SHIPPED)
CPU_KERNELS = ("csrc/cpu", "csrc/arithmetic.h", "csrc/tensors.h")
SPEED = (*TIMM, *CPU_KERNELS, "tokenreduce/lab/speed")
ALL = (*METHODS, "patches", "tokenreduce/patching")
EMBEDDING = ("tokenreduce/lab/embedding", "benchmarks/embed_memory.py")
QUALITY_PY = "python benchmarks/quality.py"

# name -> (the command, what it measures: files and folders, besides the script that the command names)
ORIGINS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bound_coverage": (
        "python benchmarks/bound_coverage.py",
        ("tokenreduce/lab/search/gate.py", "tokenreduce/lab/quality/bootstrap.py"),
    ),
    "break_even": ("python benchmarks/break_even.py --write", SPEED),
    "calibrate_fashion": (
        "python benchmarks/calibrate_fashion.py --data-dir DIR",
        (*SEARCH, "benchmarks/leave_one_out.py"),
    ),
    "compatibility": ("python benchmarks/compatibility.py", ALL),
    "deit_small_tome_r13": (
        "tokenreduce bench --model deit_small_patch16_224 --no-pretrained --method tome --r 13 --batch-size 8,32 "
        "--rounds 12 --json benchmarks/results/deit_small_tome_r13.json",
        SPEED,
    ),
    "demo": ("tokenreduce demo --json benchmarks/results/demo.json", QUALITY),
    "demo_dinov2_small": (
        "tokenreduce demo --model dinov2_small --json benchmarks/results/demo_dinov2_small.json",
        QUALITY,
    ),
    "demo_vlm": (
        "tokenreduce demo --task vlm --limit 250 --json benchmarks/results/demo_vlm.json",
        ANSWERS,
    ),
    "detection": ("python benchmarks/dense.py detection --data-dir DIR", DENSE),
    "embed_memory": ("python benchmarks/embed_memory.py", (*QUALITY, *EMBEDDING)),
    "gpu": ("python benchmarks/gpu.py --out DIR && python benchmarks/gpu_collect.py DIR", (*TIMM, "csrc")),
    "kernels": (
        "python benchmarks/kernels.py",
        (*METHODS, *CPU_KERNELS, "tokenreduce/models", "benchmarks/kernel_memory.py"),
    ),
    "launches": (
        "python benchmarks/launch_counts.py",
        (*TIMM, "tests/ops/launches.py", "tests/ops/triton/counted.py", "tests/ops/triton/recorded.py"),
    ),
    "leave_one_out": ("python benchmarks/leave_one_out.py --seeds 2 --photographs DIR", SEARCH),
    "mutants": ("make mutants", ("tokenreduce", "patches")),
    "onnxruntime": (
        "python examples/onnx_export.py --json benchmarks/results/onnxruntime.json",
        (*TIMM, "examples/runtimes.py"),
    ),
    "openvino": (
        "python examples/openvino_export.py --int8 --json benchmarks/results/openvino.json",
        (*TIMM, "examples/runtimes.py"),
    ),
    "quality": (QUALITY_PY, QUALITY),
    "quality_real": ("python benchmarks/quality.py --model dinov2_small", REAL),
    "quality_real_518": ("python benchmarks/quality.py --model dinov2_small --size 518", REAL),
    "quality_second": (
        f"{QUALITY_PY} --data-dir DIR --checkpoint runs/second/checkpoint.pt --name quality_second",
        QUALITY,
    ),
    "restoring_detection": (
        "python benchmarks/dense.py detection --data-dir DIR --held-out --rounds 0",
        DENSE,
    ),
    "restoring_segmentation": ("python benchmarks/dense.py segmentation --data-dir DIR --held-out", DENSE),
    "scaling": (
        "python benchmarks/scaling.py",
        (*QUALITY, *EMBEDDING, "tokenreduce/lab/shards.py", "tokenreduce/lab/team.py"),
    ),
    "scans": (
        "python benchmarks/scan_rules.py",
        (*METHODS, "patches/shared", "patches/scan", "tokenreduce/models", SHIPPED),
    ),
    "segmentation": ("python benchmarks/dense.py segmentation --data-dir DIR", DENSE),
    "serving": ("python benchmarks/serving.py", (*SPEED, "examples/serve.py")),
    "shipped_models": ("python benchmarks/shipped_models.py --data-dir DIR", DENSE),
    "size_errors": ("python benchmarks/size_errors.py", ("tokenreduce/ops/size_channels.py",)),
    "speed": ("python benchmarks/speed.py --threads 2", SPEED),
    "targets": ("python benchmarks/targets.py", ALL),
    "transforms": ("python benchmarks/transforms.py", ALL),
    "variants": ("python benchmarks/variants.py", REAL),
    "versions": ("make versions", (*ALL, "benchmarks/versions.py")),
    "vlm_positions": ("python benchmarks/vlm_positions.py", ANSWERS),
    "vim_speed": (
        "python benchmarks/vim_speed.py",
        (*SPEED, "patches/scan", "tokenreduce/models"),
    ),
}

# (page, marker) of a table -> the results that it is made of, whose origins are named below it
TABLES: dict[tuple[str, str], str | tuple[str, ...]] = {
    ("README.md", "dinov2_small"): "demo_dinov2_small",
    ("docs/backbones.md", "compatibility"): "compatibility",
    ("docs/calibrate.md", "coverage"): "bound_coverage",
    ("docs/calibrate.md", "fashion"): "calibrate_fashion",
    ("docs/calibrate.md", "left out"): "leave_one_out",
    ("docs/choosing.md", "best"): "quality_real",
    ("docs/choosing.md", "budgets"): ("demo_dinov2_small", "demo"),
    ("docs/dense.md", "segmentation"): "segmentation",
    ("docs/dense.md", "detection"): "detection",
    ("docs/dense.md", "restoring segmentation"): "restoring_segmentation",
    ("docs/dense.md", "restoring detection"): "restoring_detection",
    ("docs/gpu.md", "gpu"): "gpu",
    ("docs/integrations.md", "serving"): "serving",
    ("docs/integrations.md", "onnxruntime"): "onnxruntime",
    ("docs/integrations.md", "openvino"): "openvino",
    ("docs/kernels.md", "attention"): "gpu",
    ("docs/kernels.md", "extension"): "gpu",
    ("docs/kernels.md", "kernels"): "kernels",
    ("docs/kernels.md", "launches"): "launches",
    ("docs/kernels.md", "size errors"): "size_errors",
    ("docs/methods.md", "best"): "quality_real",
    ("docs/methods.md", "inherit"): "variants",
    ("docs/quality.md", "demo"): "demo",
    ("docs/speed.md", "bench"): "deit_small_tome_r13",
    ("docs/scaling.md", "memory"): "embed_memory",
    ("docs/scaling.md", "scaling"): "scaling",
    ("docs/speed.md", "break-even"): "break_even",
    ("docs/speed.md", "speed"): "speed",
    ("docs/state-space.md", "kernels"): "kernels",
    ("docs/state-space.md", "scans"): "scans",
    ("docs/state-space.md", "speed"): "vim_speed",
    ("docs/targets.md", "targets"): "targets",
    ("docs/versions.md", "versions"): "versions",
    ("docs/vlm.md", "positions"): "vlm_positions",
    ("docs/vlm.md", "scene_vlm"): "demo_vlm",
    ("docs/ward.md", "variants"): "variants",
    ("docs/ward.md", "ward"): ("quality_real", "quality", "quality_second"),
}
for share in ("0.8", "0.6", "0.45"):
    TABLES["docs/quality.md", f"real {share}"] = "quality_real"
    TABLES["docs/quality.md", f"real 518 {share}"] = "quality_real_518"
    TABLES |= {("docs/quality.md", f"{name} {share}"): name for name in ("quality", "quality_second")}


def content(name: str) -> str:
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()[:16]


def watched(name: str) -> tuple[str, ...]:
    """What a results file measures, the script that made it included."""
    command, paths = ORIGINS[name]
    return (*paths, *re.findall(r"(?:benchmarks|examples)/\w+\.py", command))


def record(name: str, commit: str | None = None) -> dict[str, Any]:
    """What is kept of a results file: of now, or of an earlier commit at which it was measured."""
    paths = watched(name)
    when = git("log", "-1", "--format=%cs", commit).strip() if commit else datetime.date.today().isoformat()
    at = git("rev-parse", "--short=7", commit or "HEAD").strip()
    code = digest(files_at(commit, paths) if commit else files_now(paths))
    return {"commit": at, "date": when, "code": code, "results": content(name)}


def known() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def outdated(name: str) -> bool:
    """Whether the code that the results measure has changed since."""
    return known()[name]["code"] != digest(files_now(watched(name)))


def stamps(data: Any) -> set[str]:
    """Every stamp in a results file: what stands below a key `measured`, at any depth."""
    if isinstance(data, list):
        return set().union(*map(stamps, data))
    if not isinstance(data, dict):
        return set()
    found: set[str] = set()
    for key, value in data.items():
        found |= leaves(value) if key == "measured" else stamps(value)
    return found


def leaves(value: Any) -> set[str]:
    return {value} if isinstance(value, str) else set().union(*map(leaves, value.values()))


def earlier(name: str) -> str:
    """The stamp of what is in a results file without one: of the commit that was noted for the file."""
    return f"{known()[name]['commit']}/"


def commits(name: str) -> str:
    """The commits at which rows of a results file were measured, in words."""
    found = {stamp.partition("/")[0] for stamp in stamps(json.loads((RESULTS / f"{name}.json").read_text()))}
    *first, last = sorted(found) or [known()[name]["commit"]]
    return f"commits {', '.join(first)} and {last}" if first else f"commit {last}"


def note(name: str) -> str:
    """What stands below a table."""
    found = known()[name]
    since = "; the code that it measures has changed since" if outdated(name) else ""
    said = f" {found['note']}" if "note" in found else ""
    return f"\n\n*`{ORIGINS[name][0]}`, {found['date']}, at {commits(name)}{since}.{said}*\n"


def notes(place: tuple[str, str]) -> str:
    """The notes of all results that a table is made of; of those that are not there yet, none."""
    names = TABLES.get(place, ())
    return "".join(note(name) for name in ((names,) if isinstance(names, str) else names) if name in known())


def with_notes(tables: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """The tables, each with its origin below it; and the table of all results."""
    noted = {place: made + notes(place) for place, made in tables.items()}
    return noted | {("docs/results.md", "results"): table()}


def table() -> str:
    """All results files."""
    lines = ["| results | command | date | commit | code since |", "|---|---|---|---|---|"]
    for name, found in sorted(known().items()):
        link = f"[`{name}.json`](../benchmarks/results/{name}.json)"
        state = "**changed**" if outdated(name) else "the same"
        lines.append(f"| {link} | `{ORIGINS[name][0]}` | {found['date']} | {found['commit']} | {state} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("list", "measured"), default="list")
    parser.add_argument("names", nargs="*", help="results files, without .json")
    parser.add_argument("--commit", help="they were measured at this commit, not now")
    args = parser.parse_args()
    if args.action == "list":
        print(table())
        return
    for name in args.names:
        if name not in ORIGINS:
            parser.error(f"no results are named {name}; known: {', '.join(ORIGINS)}")
    kept = known() | {name: record(name, args.commit) for name in args.names}
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
