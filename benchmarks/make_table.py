"""Tables of the docs: of a results file (`python benchmarks/make_table.py results/demo.json`) and of all methods
(`python benchmarks/make_table.py methods`). With `--write` all tables in the README and docs/ are made anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tokenreduce
from tokenreduce.cli.output import COLUMNS

ROOT = Path(__file__).parent.parent

HIDDEN = {"budget", "top5", "token_error", "p90_ms", "attention", "plan_us", "apply_us", "peak_memory_mib"}


def markdown(rows: list[dict]) -> str:
    """The columns of the command's own table."""
    keys = [k for k in COLUMNS if k not in HIDDEN and any(row.get(k) is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[k][0] for k in keys) + " |"]
    lines.append("|" + "|".join("---" if k == "method" else "---:" for k in keys) + "|")
    for row in rows:
        cells = [COLUMNS[k][1](row[k]) if row.get(k) is not None else "-" for k in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def methods() -> str:
    """One row a method, from the facts that the library itself states."""
    lines = ["| name | kind | paper | what it does | needs | a budget spreads as | checked against |", "|" + "---|" * 7]
    for facts in map(tokenreduce.describe, tokenreduce.methods()):
        number = facts["paper"].removeprefix("arXiv ")
        paper = "none" if number == "none" else f"[arXiv {number}](https://arxiv.org/abs/{number}) ({facts['year']})"
        needs = ", ".join([*facts["needs"], *(f"({name})" for name in facts["uses"])]).replace("_", " ") or "nothing"
        spread = facts["budget"]
        if facts["adaptive"]:
            spread += f"; {facts['budgeted']}. Without a budget its threshold decides"
        cells = [f"`{facts['name']}`", facts["kind"], paper, facts["summary"], needs, spread, facts["checked"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds() -> str:
    """All methods by kind; those that only models of videos carry in a row of their own."""
    found: dict[str, list[str]] = {}
    for facts in map(tokenreduce.describe, tokenreduce.methods()):
        note = " (models with auxiliary heads)" if "auxiliary_logits" in facts["needs"] else ""
        kind = "video" if "frames" in facts["needs"] else facts["kind"]
        found.setdefault(kind, []).append(f"`{facts['name']}`{note}")
    rows = (f"| {kind} | {', '.join(names)} |" for kind, names in found.items())
    return "\n".join(["| kind | methods |", "|---|---|", *rows])


def quality(data: dict, share: float) -> str:
    """Methods at one share of the compute, best class error first, with bootstrap intervals."""
    lines = [
        "| method | tokens left | top-1 | change, points | 95 % interval | class error | of tome's | token error "
        "| of tome's |",
        "|---|" + "---:|" * 8,
    ]
    rows = [row for row in data["rows"] if row.get("budget") == f"flops={share}"]
    for row in sorted(rows, key=lambda row: row.get("class_error", 9)):
        if "refused" in row:
            lines.append(f"| `{row['method']}` | refused: {row['refused']} |" + " |" * 7)
            continue
        low, high = row["top1_change_interval"]
        cells = [f"`{row['method']}`", f"{row['tokens_left']:.0f}", f"{row['top1']:.2%}"]
        cells += [f"{100 * row['top1_change']:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"]
        for name in ("class_error", "token_error"):
            low, high = row[f"{name}_of_tome_interval"]
            cells += [f"{row[name]:.5f}", f"{row[f'{name}_of_tome']:.2f} ({low:.2f}-{high:.2f})"]
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
    modes = ("copy", "soft", "freeze", "delta")
    lines = [f"| method | {' | '.join(modes)} |", "|---|" + "---:|" * len(modes)]
    changes: dict[str, dict[str, str]] = {}
    for row in data["rows"][1:]:
        if "refused" not in row:
            changes.setdefault(row["method"], {})[row["options"]["restore"]] = f"{100 * row['change']:+.2f}"
    for method, found in changes.items():
        lines.append(f"| `{method}` | {' | '.join(found.get(mode, '') for mode in modes)} |")
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
    """Time over that of free slicing, with the target where there is one."""
    lines = [
        "| model | batch | method | budget | time / limit | all runs | target | speed-up | tokens left |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in data["rows"]:
        runs = ", ".join(f"{share:.3f}" for share in row["runs"] if share is not None)
        cells = [row["model"], str(row["batch_size"]), f"`{row['method']}`", row["budget"]]
        cells += ["-" if row["limit_share"] is None else f"{row['limit_share']:.3f}", runs, str(row["target"] or "")]
        lines.append(f"| {' | '.join([*cells, format(row['speedup'], '.2f'), str(row['tokens_left'])])} |")
    return "\n".join(lines)


def tables() -> dict[tuple[str, str], str]:
    """(file, marker) -> table, for every table that is made of results or facts."""
    read = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")}
    made = {
        ("README.md", "demo"): markdown(read["demo"]["rows"]),
        ("README.md", "bench"): markdown(read["deit_small_tome_r13"]["rows"]),
        ("README.md", "kinds"): kinds(),
        ("docs/methods.md", "methods"): methods(),
        ("docs/backbones.md", "compatibility"): compatibility(read["compatibility"]),
        ("docs/backbones.md", "refusals"): refusals(read["compatibility"]),
        ("docs/speed.md", "break-even"): break_even(read["break_even"]),
        ("docs/speed.md", "speed"): speed(read["speed"]),
    }
    for name in ("quality", "quality_second"):
        for share in (0.8, 0.6, 0.45):
            made["docs/quality.md", f"{name} {share}"] = quality(read[name], share)
    for task in HEADLINES:
        made["docs/dense.md", task] = dense(read[task], task)
        made["docs/dense.md", f"restoring {task}"] = restoring(read[f"restoring_{task}"])
    made["README.md", "quality"] = made["docs/quality.md", "quality 0.6"]
    return made


def write() -> None:
    for (file, marker), table in tables().items():
        start, end = f"<!-- {marker} table -->\n", f"\n<!-- end of {marker} table -->"
        before, _, rest = (ROOT / file).read_text().partition(start)
        (ROOT / file).write_text(before + start + table + end + rest.partition(end)[2])


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        write()
    else:
        print(methods() if sys.argv[1] == "methods" else markdown(json.loads(Path(sys.argv[1]).read_text())["rows"]))
