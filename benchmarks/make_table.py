"""Tables of the docs: of a results file (`python benchmarks/make_table.py results/demo.json`) and of all methods
(`python benchmarks/make_table.py methods`). With `--write` all tables, and sentences with figures, in the README and
docs/ are made anew; `--check` fails where one is not what would be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sentences
import versions

import tokenreduce
from tokenreduce.cli.output import COLUMNS
from tokenreduce.maps.restoring import MODES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import calibrate_tables  # noqa: E402
import card_tables  # noqa: E402
import choice_tables  # noqa: E402
import facts as stated  # noqa: E402
import integration_tables  # noqa: E402
import kernel_tables  # noqa: E402
import origins  # noqa: E402
import quality_tables  # noqa: E402
import scaling_tables  # noqa: E402
import scan_tables  # noqa: E402
import target_tables  # noqa: E402
import transform_tables  # noqa: E402
import variant_tables  # noqa: E402
import vlm_tables  # noqa: E402

HIDDEN = {"budget", "top5", "token_error", "p90_ms", "attention", "plan_us", "apply_us", "peak_memory_mib"}
GEOMETRIC = {key for key in COLUMNS if key.endswith("_geometric")}


def markdown(rows: list[dict], hidden: set[str] = HIDDEN) -> str:
    """The columns of the command's own table."""
    keys = [k for k in COLUMNS if k not in hidden and any(row.get(k) is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[k][0] for k in keys) + " |"]
    lines.append("|" + "|".join("---" if k == "method" else "---:" for k in keys) + "|")
    for row in rows:
        cells = [COLUMNS[k][1](row[k]) if row.get(k) is not None else "-" for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


NO_PHOTOGRAPHS = "The table was not measured for this version yet; this is how it is made:"


def photographs(data: dict | None) -> str:
    """The table of the demo on photographs."""
    return NO_PHOTOGRAPHS if data is None else markdown(data["rows"], {"budget", *GEOMETRIC})


def methods() -> str:
    """One row a method, from the facts that the library itself states."""
    lines = ["| name | kind | paper | what it does | needs | a budget spreads as |", "|" + "---|" * 6]
    for facts in map(tokenreduce.describe, tokenreduce.methods()):
        number = facts["paper"].removeprefix("arXiv ")
        paper = "none" if number == "none" else f"[arXiv {number}](https://arxiv.org/abs/{number}) ({facts['year']})"
        needs = ", ".join([*facts["needs"], *(f"({name})" for name in facts["uses"])]).replace("_", " ") or "nothing"
        spread = facts["budget"]
        if facts["adaptive"]:
            spread += f"; {facts['budgeted']}. Without a budget its threshold decides"
        cells = [f"`{facts['name']}`", facts["kind"], paper, facts["summary"], needs, spread]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


HEADLINES = {"segmentation": ("miou", "mIoU"), "detection": ("ap50", "AP50")}
DENSE_BUDGETS = (0.85, 0.7, 0.55)


def dense(data: dict, task: str) -> str:
    """Methods by rows, budgets by columns: the figure, its change in points and the interval of the change; best first
    in the middle."""
    key, name = HEADLINES[task]
    full = data["rows"][0][key]
    lines = [
        f"| method | {' | '.join(f'{share:.0%} of the compute' for share in DENSE_BUDGETS)} |",
        "|---|---:|---:|---:|",
    ]
    lines.append(f"| unpatched, {name} {full:.2%} | | | |")
    cells: dict[str, dict[str, str]] = {}
    middle: dict[str, float] = {}
    for row in data["rows"][1:]:
        found = cells.setdefault(row["method"], {})
        if "refused" in row:
            found[row["budget"]] = "not reached"
            continue
        low, high = row["change_interval"]
        found[row["budget"]] = f"{100 * row['change']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        if row["budget"] == f"flops={DENSE_BUDGETS[1]}":
            middle[row["method"]] = row[key]
    reached = [method for method, found in cells.items() if set(found.values()) != {"not reached"}]
    for method in sorted(reached, key=lambda method: -middle.get(method, -1)):
        figures = [cells[method].get(f"flops={share}", "") for share in DENSE_BUDGETS]
        lines.append(f"| `{method}` | {' | '.join(figures)} |")
    return "\n".join(lines)


def restoring(data: dict) -> str:
    """Methods by rows, ways of restoring by columns: change of the figure in points."""
    modes = tuple(MODES)
    lines = [f"| method | {' | '.join(modes)} |", "|---|" + "---:|" * len(modes)]
    for method, changes in sentences.by_mode(data).items():
        cells = [f"{100 * changes[mode]:+.2f}" if mode in changes else "" for mode in modes]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


CHECKS = {"exact": "e", "oracle": "o", "compile": "c", "export": "x", "restore": "r"}


def compatibility(data: dict) -> str:
    """Families x methods; a letter for each check that passed."""
    names = sorted({method for row in data["rows"] for method in row["methods"]})
    lines = ["| family | " + " | ".join(f"`{name}`" for name in names) + " |", "|---|" + ":---:|" * len(names)]
    for row in data["rows"]:
        cells = [cell(row["methods"].get(name, {})) for name in names]
        lines.append(f"| {row['family']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(results: dict[str, str]) -> str:
    """Letters of the checks that passed, "!" for one that failed, "." for one that was not run."""
    if "refused" in results:
        return "refused"
    signs = {"pass": "", "does not apply": "", None: "."}
    return "".join(
        letter if results.get(check) == "pass" else signs.get(results.get(check), "!")
        for check, letter in CHECKS.items()
    )


def refusals(data: dict) -> str:
    """Which methods a family refuses, by reason."""
    lines = ["| family | refused | because |", "|---|---|---|"]
    for row in data["rows"]:
        reasons: dict[str, list[str]] = {}
        for method, results in row["methods"].items():
            if "refused" in results:
                reasons.setdefault(results["refused"], []).append(f"`{method}`")
        lines += [f"| {row['family']} | {', '.join(who)} | {reason} |" for reason, who in reasons.items()]
    return "\n".join(lines)


def break_even(data: dict) -> str:
    """Widths and methods by rows, image tokens by columns: speed-up and its interval; the break-even first."""
    counts = sorted({row["tokens"] for row in data["rows"]})
    lines = [
        f"| width | method | break-even | {' | '.join(f'{count} tokens' for count in counts)} |",
        "|---:|---|---:|" + "---:|" * len(counts),
    ]
    found = {(row["width"], row["method"], row["tokens"]): row for row in data["rows"]}
    for line in data["break_even"]:
        rows = [found[line["width"], line["method"], count] for count in counts]
        gains = [(row["speedup"], *row["speedup_interval"]) for row in rows]
        cells = [str(line["width"]), f"`{line['method']}`", str(line["tokens"] or "none")]
        cells += [f"{gain:.2f} ({low:.2f}-{high:.2f})" for gain, low, high in gains]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed(data: dict) -> str:
    """Time over that of free slicing, of the median run, with the target where there is one."""
    lines = [
        "| model | batch | method | budget | time / limit | all runs | slowest over fastest | target | meets it "
        "| speed-up | tokens left |",
        "|---|---:|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in data["rows"]:
        share, target = row["limit_share"], row["target"]
        cells = [row["model"], str(row["batch_size"]), f"`{row['method']}`", row["budget"]]
        cells += ["-" if share is None else f"{share:.3f}", "", "", str(target or ""), ""]
        if len(row["runs"]) > 1:
            cells[5] = ", ".join(f"{run['limit_share']:.3f}" for run in row["runs"])
            cells[6] = f"{sentences.spread(row):.1%}"
        if target:
            cells[8] = "yes" if share <= target else "no"
        cells += ["-" if row["speedup"] is None else f"{row['speedup']:.2f}", str(row["tokens_left"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


NO_GPU = (
    "GPU speed was never measured for this version: `python benchmarks/gpu.py --out DIR` measures it on yours, and\n"
    "`python benchmarks/gpu_collect.py DIR` and `python benchmarks/make_table.py --write` put it here."
)


def gpu(data: dict | None) -> str:
    """Whole models on a GPU: time over that of free slicing and speed-up, eager and as a graph; the card first."""
    if data is None:
        return NO_GPU
    versions = ", ".join(f"{name} {data[name]}" for name in ("torch", "triton", "timm") if data.get(name))
    lines = [
        f"{data['gpu']}, {versions}, half precision, random weights:",
        "",
        "| model | input | batch | method | time / limit, graph | time / limit, eager | speed-up, graph "
        "| speed-up, eager | unpatched, graph, ms |",
        "|---|---:|---:|---|" + "---:|" * 5,
    ]
    rows = [row for row in data["rows"] if row["stage"] == "models" and row.get("choice") == "auto"]
    cases = [(row["model"], row["side"], row["batch"]) for row in rows]  # a later run may have added a method to some
    for _, row in sorted(zip(map(cases.index, cases), rows, strict=True), key=lambda placed: placed[0]):
        # Written into the results where the code has changed since.
        variant = f", {row['variant']}" if "variant" in row else ""
        cells = [row["model"], str(row["side"]), str(row["batch"]), f"`{row['method']}`{variant}"]
        for key in ("graph_limit_share", "eager_limit_share", "graph_speedup", "eager_speedup"):
            cells.append(
                f"{row[key]:.3f}" if "limit" in key and key in row else f"{row[key]:.2f}" if key in row else "-"
            )
        cells.append(f"{row['graph_unpatched_us'] / 1000:.2f}" if "graph_unpatched_us" in row else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> dict[tuple[str, str], str]:
    """(file, marker) -> table or sentences, for all that are made of results or facts."""
    read = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")}
    made = {
        ("README.md", "dinov2_small"): photographs(read.get("demo_dinov2_small")),
        ("docs/quality.md", "demo"): markdown(read["demo"]["rows"]),
        ("docs/speed.md", "bench"): markdown(read["deit_small_tome_r13"]["rows"]),
        ("docs/methods.md", "methods"): methods(),
        ("docs/backbones.md", "compatibility"): compatibility(read["compatibility"]),
        ("docs/backbones.md", "refusals"): refusals(read["compatibility"]),
        ("docs/gpu.md", "gpu"): gpu(read.get("gpu")),
        ("docs/gpu.md", "eager in words"): sentences.eager(read["gpu"]),
        ("docs/gpu.md", "graph in words"): sentences.graph(read["gpu"]),
        ("docs/speed.md", "break-even"): break_even(read["break_even"]),
        ("docs/speed.md", "speed"): speed(read["speed"]),
        ("docs/speed.md", "speed in words"): sentences.limits(read["speed"]),
        ("docs/state-space.md", "scans"): scan_tables.scans(read["scans"]),
        ("docs/targets.md", "targets"): target_tables.outcomes(read["targets"]["rows"]),
        ("docs/targets.md", "refusals"): target_tables.refusals(read["targets"]["rows"]),
        ("docs/transforms.md", "sentences"): transform_tables.sentences(read["transforms"]["columns"]),
        ("docs/testing.md", "mutants"): sentences.mutants(read["mutants"]),
        ("docs/versions.md", "versions"): versions.table(read["versions"]["rows"]),
    }
    for library, columns in read["transforms"]["columns"].items():
        made["docs/transforms.md", library] = transform_tables.outcomes(columns)
    for task in HEADLINES:
        made["docs/dense.md", task] = dense(read[task], task)
        made["docs/dense.md", f"restoring {task}"] = restoring(read[f"restoring_{task}"])
    found, restored = ([read[f"{kind}{task}"] for task in HEADLINES] for kind in ("", "restoring_"))
    made["docs/dense.md", "pruning in words"] = sentences.pruning(*found, restored[1])
    made["docs/dense.md", "restoring in words"] = sentences.restoring(*restored)
    made["README.md", "dense in words"] = sentences.small_losses(*found)
    per_page = (quality_tables, choice_tables, calibrate_tables, scaling_tables, integration_tables, kernel_tables)
    for module in (*per_page, variant_tables, vlm_tables, card_tables):
        made |= module.tables(read)
    return origins.with_notes(made | stated.tables())


def write() -> None:
    for (file, marker), table in tables().items():
        (ROOT / file).write_text(replaced((ROOT / file).read_text(), marker, table))


def outdated() -> list[tuple[str, str]]:
    """(file, marker) of each table that is not what would be written: its results, its facts or the code that it
    measures are others than when it was."""
    return [
        (file, marker)
        for (file, marker), table in tables().items()
        if replaced(text := (ROOT / file).read_text(), marker, table) != text
    ]


def replaced(text: str, marker: str, table: str) -> str:
    """`text` with this table between its two comments; it may have none there yet.

    Raises: ValueError if a comment is missing.
    """
    before, start, rest = text.partition(f"<!-- {marker} table -->\n")
    _, end, after = rest.partition(f"<!-- end of {marker} table -->")
    if not start or not end:
        raise ValueError(f"the two comments of {marker} are missing")
    return f"{before}{start}{table}\n{end}{after}"


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write()
    elif sys.argv[1] == "--check":
        if found := outdated():
            places = "\n".join(f"  {file}: {marker}" for file, marker in found)
            sys.exit(f"tables that are not of this code (python benchmarks/make_table.py --write):\n{places}")
    else:
        print(methods() if sys.argv[1] == "methods" else markdown(json.loads(Path(sys.argv[1]).read_text())["rows"]))
