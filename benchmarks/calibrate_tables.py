"""Tables of docs/calibrate.md: what `calibrate` does to images that it has not seen, and how sure its bound is."""

from __future__ import annotations

from typing import Any

from tabular import table

from tokenreduce.lab.search.trials import Variant
from tokenreduce.reducers.registry import create

Data = dict[str, Any]
WHICH = {"chosen": "what `calibrate` gives", "candidate": "its best candidate, were it not checked"}


def over(found: Data) -> list[str]:
    """Errors over those of the default: of the means and image by image, with intervals."""
    keys = ("of_means", "geometric")
    return [f"{found[key]:.3f} ({found[f'{key}_interval'][0]:.3f}-{found[f'{key}_interval'][1]:.3f})" for key in keys]


def left_out(data: Data) -> str:
    """Each kind of error on the source that was left out, over all folds."""
    lines = ["| errors over the default's | kind | of the means | image by image | smaller | larger | largest |"]
    lines.append("|---|---|" + "---:|" * 5)
    for which, words in WHICH.items():
        for kind in data["kinds"]:
            found = data[which][kind]
            cells = [words, kind.removesuffix("_error"), *over(found), str(found["smaller"]), str(found["larger"])]
            lines.append(f"| {' | '.join(cells)} | {max(1, found['largest']):.2f} |")
    return "\n".join(lines)


def left_out_in_words(data: Data) -> str:
    """On what, and how often the result was another than the default."""
    sizes = f"{data['images']} squares of {len(data['photographs'])} photographs, {len(data['rows'])} folds"
    missing = f" **{data['folds_left']} folds are still to be measured.**" if data["folds_left"] else ""
    return (
        f"DINOv2 ViT-S/14 at {data['flops']:.0%} of the compute, {sizes}.{missing} In {data['with_candidate']} folds a "
        f"candidate was better than the default on the images that choose, in {data['improved']} the check let it "
        "through; in all others the result is the default."
    )


def fashion(data: Data) -> str:
    """The result of each seed on the images that check and on the test images."""
    heads = [f"test {kind.replace('_', ' ')} | image by image" for kind in data["kinds"]]
    lines = [f"| seed | result | images that check | {' | '.join(heads)} |", "|---:|---|" + "---:|" * 5]
    for row in data["rows"]:
        usual = create(row["method"], {}).options()
        result = Variant(row["method"], {key: value for key, value in row["options"].items() if value != usual[key]})
        checked = "-"
        if row["checked"]:
            low, high = row["checked"]["overall"]["interval90"]
            checked = f"{row['checked']['overall']['ratio']:.2f} ({low:.2f}-{high:.2f})"
        cells = [str(row["seed"]), f"`{result}`, {'another schedule' if row['improved'] else 'the default'}", checked]
        cells += [cell for kind in data["kinds"] for cell in over(row["test"][kind])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def coverage(data: Data) -> str:
    """How often the bound and a percentile are above the true mean, by sources and by how skewed their errors are."""
    rows = []
    for row in data["rows"]:
        cells = [f"{row['spread']:g}", str(row["sources"])]
        rows.append([*cells, *(f"{row[name]:.1%}" for name in ("bound", "percentile"))])
    heads = ("standard deviation", "sources", "the bound is above the mean", "a percentile is")
    return f"{data['trials']:,} draws each:\n\n{table(heads, rows, left=0)}"


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> table or sentences, as in `make_table.tables`."""
    return {
        ("docs/calibrate.md", "left out"): left_out(read["leave_one_out"]),
        ("docs/calibrate.md", "left out in words"): left_out_in_words(read["leave_one_out"]),
        ("docs/calibrate.md", "fashion"): fashion(read["calibrate_fashion"]),
        ("docs/calibrate.md", "coverage"): coverage(read["bound_coverage"]),
    }
