"""Tables of results/targets.json: methods by targets, and what converters said where they refused one."""

from __future__ import annotations

Cells = dict[str, str]  # target -> what became of a method there
PORTABLE = ", portable"
UNFIT = ("refused: ", "crashed: ", "not run: ")


def outcomes(rows: dict[str, Cells]) -> str:
    """One row a method, one column a target."""
    targets = list(dict.fromkeys(target for cells in rows.values() for target in cells))
    lines = ["| method | " + " | ".join(targets) + " |", "|---|" + ":---:|" * len(targets)]
    for method, cells in rows.items():
        lines.append(f"| {title(method)} | {' | '.join(short(cells.get(target, '.')) for target in targets)} |")
    return "\n".join(lines)


def title(method: str) -> str:
    """A method as code, with its options as those of a call."""
    name, _, options = method.partition(", ")
    return method if method == "unpatched" else f"`{name}({options})`" if options else f"`{name}`"


def short(outcome: str) -> str:
    """Without what a converter said, and with a star where the program was made portable."""
    word, _, rest = outcome.removesuffix(PORTABLE).partition(": ")
    if outcome.endswith(PORTABLE):
        word += "\\*"
    return word if outcome.startswith(UNFIT) else f"{word} {rest}".strip()


def refusals(rows: dict[str, Cells]) -> str:
    """By target, what was said of which methods."""
    said: dict[tuple[str, str], list[str]] = {}
    for method, cells in rows.items():
        for target, outcome in cells.items():
            if outcome.startswith(UNFIT):
                said.setdefault((target, outcome.partition(": ")[2]), []).append(title(method))
    lines = [f"| {target} | {words} | {', '.join(who)} |" for (target, words), who in sorted(said.items())]
    return "\n".join(["| target | says | of |", "|---|---|---|", *lines])
