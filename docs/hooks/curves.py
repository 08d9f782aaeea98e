"""Curves of a method on the real model: errors against compute, beside `tome` and dropping at random."""

from __future__ import annotations

import io

import measured

from tokenreduce.lab.pictures import error_curves

FILE = "quality_real"
BESIDE = ("tome", "random")


def draw(name: str) -> bytes:
    """An SVG; empty where the method was not measured."""
    own = measured.rows(FILE, name)
    if not own:
        return b""
    import matplotlib

    rows = [row for one in dict.fromkeys((name, *BESIDE)) for row in measured.rows(FILE, one)]
    figure = error_curves(rows, {key: key.replace("_", " ") for key in measured.ERRORS})
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same names inside in every build
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
