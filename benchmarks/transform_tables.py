"""Tables of results/transforms.json: methods by transforms, and what was said where one is refused."""

from __future__ import annotations

Column = dict[str, str]  # method -> what became of it


def outcomes(columns: dict[str, Column]) -> str:
    """One row a method, one column a transform; a dot where it was not run."""
    methods = list(dict.fromkeys(method for column in columns.values() for method in column if method != "unpatched"))
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + ":---:|" * len(columns)]
    for method in methods:
        cells = [short(column.get(method, ".")) for column in columns.values()]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def short(outcome: str) -> str:
    """The first word, or "-" where the model cannot be transformed unpatched either."""
    word = outcome.partition(":")[0]
    return "-" if word == "cannot" else word


def sentences(libraries: dict[str, dict[str, Column]]) -> str:
    """What the library said, by transform."""
    said = {
        (transform, outcome.removeprefix("refused: "))
        for columns in libraries.values()
        for transform, column in columns.items()
        for outcome in column.values()
        if outcome.startswith("refused: ")
    }
    return "\n".join(["| transform | says |", "|---|---|", *(f"| {name} | {words} |" for name, words in sorted(said))])
