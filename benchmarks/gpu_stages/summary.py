"""The end of a run in a few lines."""

from __future__ import annotations

from gpu_stages.session import Facts, Session

HEADINGS = ("model", "batch", "method", "choice", "limit eager", "limit graph", "speed-up eager", "speed-up graph")


def show(session: Session) -> None:
    """Print what failed and the table of models."""
    for row in session.rows:
        if row.get("cut") or any("failed" in key for key in row):
            print("FAILED" if "cut" not in row else "CUT", {k: v for k, v in row.items() if not isinstance(v, list)})
    wrong = [row for row in session.rows if row["stage"] == "correct" and row.get("repeats") is False]
    print(f"{len(wrong)} rows of `correct` do not repeat")
    print("".join(f"{word:>16}" for word in HEADINGS))
    for row in session.rows:
        if row["stage"] == "models" and "method" in row:
            print("".join(f"{cell:>16}" for cell in cells(row)))


def cells(row: Facts) -> list[str]:
    figures = [row.get(f"{mode}_{what}") for what in ("limit_share", "speedup") for mode in ("eager", "graph")]
    names = [row["model"][:15], str(row["batch"]), row["method"], row["choice"]]
    return names + ["-" if figure is None else f"{figure:.3f}" for figure in figures]
