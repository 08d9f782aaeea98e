"""Tables and sentences of quality at equal compute: of the real model first, then of the small ones with labels."""

from __future__ import annotations

from typing import Any

from quality_real import FEW_COUNT
from sentences import listed

from tokenreduce.lab.data.photographs import COUNT

Data = dict[str, Any]
SHARES = (0.8, 0.6, 0.45)
MIDDLE = 0.6
ERRORS = ("class_error", "token_error", "saliency_error")
REAL = "DINOv2 ViT-S/14"
COMMAND = "python benchmarks/quality.py --model dinov2_small"


def rows_at(data: Data, share: float) -> dict[str, Data]:
    """The rows of one share of the compute by method, without those that were refused."""
    budget = f"flops={share}"
    return {r["method"]: r for r in data["rows"] if r["budget"] == budget and "refused" not in r}


def real(data: Data, share: float) -> str:
    """Errors of methods in multiples of `tome`'s at one share of the compute, smallest token error first."""
    rows = rows_at(data, share)
    heads = [f"{name.replace('_', ' ')} | image by image" for name in ERRORS]
    lines = [f"| method | share | tokens left | {' | '.join(heads)} |", "|---|" + "---:|" * 8]
    for row in sorted(rows.values(), key=lambda row: row["token_error_of_tome_geometric"]):
        cells = [f"`{row['method']}`", f"{row['flops_share']:.3f}", f"{row['tokens_left']:.0f}"]
        for key in (f"{name}_of_tome{end}" for name in ERRORS for end in ("", "_geometric")):
            low, high = row[f"{key}_interval"]
            cells.append(f"{row[key]:.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    values = (f"{name.replace('_', ' ')} {rows['tome'][name]:.4f}" for name in ERRORS)
    refused = [f"`{row['method']}`" for row in data["rows"] if row["budget"] == f"flops={share}" and "refused" in row]
    notes = [f"`tome` itself: {', '.join(values)}.", *([f"Refused: {listed(refused)}."] if refused else [])]
    return "\n".join([*lines, "", " ".join(notes)])


def setting(data: Data) -> str:
    """What was measured on, and how it is measured again."""
    names = data["photographs"]
    size, left = data["image_size"], data["arms_left"]
    options = f" --size {size}" * (size != 224) + " --photographs DIR" * data["further"]
    options += f" --count {data['images']}" * (data["images"] != (COUNT if size == 224 else FEW_COUNT))
    missing = f" **{left} arms are still to be measured.**" if left else ""
    return (
        f"{data['images']} squares of {size} x {size} pixels, cut out of {len(names)} photographs: {', '.join(names)}."
        f"{missing}\n\n```bash\n{COMMAND}{options}\npython benchmarks/make_table.py --write\n```"
    )


def better(data: Data) -> list[str]:
    """Methods whose class and token error, image by image, are below `tome`'s at every share."""
    tables = [rows_at(data, share) for share in SHARES]
    return [
        name
        for name in sorted(set.intersection(*map(set, tables)) - {"tome"}, key=lambda name: middle(data, name))
        if all(rows[name][f"{error}_of_tome_geometric"] < 1 for rows in tables for error in ERRORS[:2])
    ]


def middle(data: Data, method: str) -> float:
    """The token error at the middle share, image by image, by which methods are put in order."""
    return rows_at(data, MIDDLE)[method]["token_error_of_tome_geometric"]


def certain(data: Data, method: str) -> bool:
    """Whether the intervals of the ratios of mean token errors lie below 1 at every share."""
    return all(rows_at(data, share)[method]["token_error_of_tome_interval"][1] < 1 for share in SHARES)


def verdict(data: Data) -> str:
    """Which methods the real model speaks for, and which it speaks against."""
    good = better(data)
    sure = [f"`{name}`" for name in good if certain(data, name)]
    rows = rows_at(data, MIDDLE)
    bad = [
        f"`{name}`"
        for name, row in rows.items()
        if any(row[f"{error}_of_tome"] > rows["random"][f"{error}_of_tome"] for error in ERRORS[:2])
    ]
    budgets = "at 80, 60 and 45 % of the compute"
    first = f"No method has a smaller class and token error than `tome`, image by image, {budgets}."
    if good:
        names = listed([f"`{name}`" for name in good])
        first = f"A smaller class and token error than `tome`, image by image, {budgets}: {names}."
    whose = f"For {listed(sure)}" if sure else "For none of them"
    second = f"{whose} the interval of the ratio of mean token errors lies below 1 at all three."
    third = f"A larger mean class or token error than `random` at 60 %: {listed(bad)}."
    return " ".join([first, *([second] if good else []), *([third] if bad else [])])


def best(data: Data) -> str:
    """The three methods with the smallest errors, image by image, for each kind of error."""
    lines = [f"| compute | {' | '.join(name.replace('_', ' ') for name in ERRORS)} |", "|---:|" + "---|" * len(ERRORS)]
    for share in SHARES:
        cells = []
        for key in (f"{name}_of_tome_geometric" for name in ERRORS):
            first = sorted(rows_at(data, share).values(), key=lambda row: row[key])[:3]
            cells.append(", ".join(f"`{row['method']}` {row[key]:.2f}" for row in first))
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def advised(data: Data) -> str:
    """Why `advise` names the methods that it names in this order."""
    row = rows_at(data, MIDDLE)["ward"]
    figures = [f"{row[f'{name}_of_tome_geometric']:.2f}" for name in ERRORS]
    return (
        "- `ward` is advised where it pays; otherwise `tome`, where that pays. On the real model of\n"
        f"  [quality.md](quality.md), at 60 % of the compute, the class, token and saliency errors of `ward` are\n"
        f"  {listed(figures)} of `tome`'s, image by image."
    )


def labelled(data: dict, share: float) -> str:
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


def ward_against_tome(models: dict[str, dict]) -> str:
    """Errors of `ward` over those of `tome` at the same compute, and which methods have a smaller class error."""
    lines = [
        "| model | compute | class error of `tome`'s | token error of `tome`'s | methods with a smaller class error |",
        "|---|---:|---:|---:|---|",
    ]
    for model, data in models.items():
        for share in (0.8, 0.6, 0.45):
            rows = [row for row in data["rows"] if row.get("budget") == f"flops={share}" and "refused" not in row]
            own = next(row for row in rows if row["method"] == "ward")
            better = sorted(f"`{row['method']}`" for row in rows if row["class_error"] < own["class_error"])
            ratios = [f"{own[f'{name}_of_tome']:.2f}" for name in ("class_error", "token_error")]
            lines.append(f"| {model} | {share:.0%} | {' | '.join(ratios)} | {', '.join(better) or 'none'} |")
    return "\n".join(lines)


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table or sentences, as in `make_table.tables`."""
    found = read["quality_real"]
    made = {
        ("README.md", "quality in words"): verdict(found),
        ("docs/quality.md", "real setting"): setting(found),
        ("docs/quality.md", "real in words"): verdict(found),
        ("docs/methods.md", "best"): best(found),
        ("docs/methods.md", "best in words"): verdict(found),
        ("docs/speed.md", "advised"): advised(found),
        ("docs/ward.md", "ward"): ward_against_tome(
            {REAL: found, "first": read["quality"], "second": read["quality_second"]}
        ),
    }
    large = read["quality_real_518"]
    made |= {("docs/quality.md", "real setting 518"): setting(large)}
    made |= {("docs/quality.md", "real 518 in words"): verdict(large)}
    for share in SHARES:
        made["docs/quality.md", f"real {share}"] = real(found, share)
        made["docs/quality.md", f"real 518 {share}"] = real(large, share)
        for name in ("quality", "quality_second"):
            made["docs/quality.md", f"{name} {share}"] = labelled(read[name], share)
    return made
