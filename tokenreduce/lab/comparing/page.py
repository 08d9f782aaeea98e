"""The page of a comparison: one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.comparing.choosing import answers, best_of, loss, measured, sentence
from tokenreduce.lab.comparing.figures import figures
from tokenreduce.lab.comparing.running import Comparison
from tokenreduce.lab.rows import COLUMNS, Row, from_file

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("tokens.png", "layers.png")  # the others are the plots again
WORDS = ("method", "budget")
ABOUT_TIME = (
    "Times are measured in rounds in which the patched and the unpatched model take turns; bars are 95 % intervals."
)


def need_plotly() -> str:
    """The code of plotly.js, which pip installs with plotly.

    Raises: ValueError if it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InvalidValueError(
            "the report needs plotly, which is not installed: pip install 'tokenreduce[report]'"
        ) from None
    return str(get_plotlyjs())


def page(comparison: Comparison, pictures: Mapping[str, str], out: Path, about: Mapping[str, Any], command: str) -> str:
    """The HTML.

    Args:
        pictures: files in `out` and what each shows.
        about: versions and the machine.
        command: what makes this page again.
    """
    rows, settings = comparison.rows, comparison.settings
    drawn = figures(rows)
    shares = settings["budgets"]
    filled = {
        "title": f"{escape(settings['model'])}: how much can be cut, and what is lost",
        "subtitle": escape(subtitle(comparison)),
        "style": (ASSETS / "page.css").read_text(),
        "answers": "\n".join(f"<li>{escape(said)}</li>" for said in answers(rows, shares)),
        "chooser": chooser("speedup" in rows[0]),
        "snippet": snippet(rows, shares),
        "about_time": ABOUT_TIME if "speedup" in rows[0] else "",
        "plots": "\n".join(
            f'<figure><figcaption>{escape(one["title"])}</figcaption><div class="plot" id="plot{number}" role="img" '
            f'aria-label="{escape(one["about"])}"></div></figure>'
            for number, one in enumerate(drawn)
        ),
        "meaning": escape(comparison.meaning[:1].upper() + comparison.meaning[1:]) + ".",
        "table": table(rows, best_of(rows, sorted(shares)[len(shares) // 2])),
        "refused": refused(rows),
        "pictures": embedded(pictures, out),
        "remarks": "".join(f"<p>{escape(remark)}</p>" for remark in comparison.remarks),
        "commands": f"<pre>{escape(command)}</pre>",
        "settings": listed(settings | dict(about)),
        "figures": embed_json([{"data": one["data"], "layout": one["layout"]} for one in drawn]),
        "data": embed_json(choices(rows)),
        "script": (ASSETS / "page.js").read_text(),
        "plotly": need_plotly(),
    }
    text = (ASSETS / "page.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], text)


def subtitle(comparison: Comparison) -> str:
    """What was measured on what."""
    settings, speed = comparison.settings, comparison.settings["speed"]
    count = len(measured(comparison.rows))
    timed = "" if speed is None else f", batch {speed['batch_size']}, {speed['threads']} CPU threads"
    return f"{count} patched models on {settings['images']} images of {settings['data']}; {settings['device']}{timed}"


def chooser(timed: bool) -> str:
    """A form that answers for any budget."""
    costs = [("time", "time")] * timed + [("compute", "multiply-adds")]
    options = "".join(f'<option value="{key}">{name}</option>' for key, name in costs)
    return (
        '<form id="chooser" class="chooser"><label>At most <input name="most" type="number" min="1" max="200" '
        f'value="65"> %</label> <label>of the unpatched model\'s <select name="cost">{options}</select></label>'
        '<output name="answer" aria-live="polite"></output></form>'
    )


def choices(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the form chooses from."""
    return [
        {
            "name": f"{row['method']} at {row['budget']}",
            "compute": row["flops_share"],
            "time": 1 / row["speedup"] if "speedup" in row else None,
            "loss": loss(row),
            "says": sentence(row).removeprefix(f"{row['method']} loses least: "),
        }
        for row in measured(rows)
    ]


def snippet(rows: Sequence[Row], shares: Sequence[float]) -> str:
    """The lines of Python that patch a model like the best row in the middle."""
    best = best_of(rows, sorted(shares)[len(shares) // 2])
    if best is None:
        return ""
    key, _, value = str(best["budget"]).partition("=")
    given = "".join(f", {name}={option!r}" for name, option in best["options"].items())
    call = f'"{best["method"]}", flops={value}{given}' if not from_file(best) else f"{key}={value!r}"
    return f"<pre>import tokenreduce\n\ntokenreduce.patch(model, {escape(call)})</pre>"


def table(rows: Sequence[Row], best: Row | None) -> str:
    """All rows that ran, with buttons that sort them."""
    ran = [row for row in rows if "refused" not in row]
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in ran)]
    head = "".join(f'<th scope="col"{words(key)}><button type="button">{COLUMNS[key][0]}</button></th>' for key in keys)
    lines = [
        ('<tr class="best">' if row is best else "<tr>") + "".join(cell(row, key) for key in keys) + "</tr>"
        for row in ran
    ]
    return (
        '<div class="scroll" role="region" aria-label="table of all figures" tabindex="0"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def words(key: str) -> str:
    return ' class="words"' if key in WORDS else ""


def cell(row: Row, key: str) -> str:
    """A cell, with what sorts it."""
    value = row.get(key)
    if value is None:
        return f'<td data-value=""{words(key)}>-</td>'
    sorts = value[0] if isinstance(value, (list, tuple)) else value
    tag = 'th scope="row" class="words"' if key == "method" else f"td{words(key)}"
    return f'<{tag} data-value="{escape(str(sorts))}">{escape(COLUMNS[key][1](value))}</{tag[:2]}>'


def refused(rows: Sequence[Row]) -> str:
    """What could not run, and why."""
    lines = "".join(
        f'<tr><th scope="row" class="words">{escape(row["method"])}</th><td class="words">'
        f'{escape(row["budget"])}</td><td class="reason">{escape(row["refused"])}</td></tr>'
        for row in rows
        if "refused" in row
    )
    if not lines:
        return ""
    head = "".join(f'<th scope="col" class="words">{name}</th>' for name in ("method", "budget", "why it was not run"))
    return (
        '<h3>Not run</h3><div class="scroll" role="region" aria-label="table of what was not run" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def embedded(pictures: Mapping[str, str], out: Path) -> str:
    """The token maps."""
    shown = [name for name in EMBEDDED if name in pictures]
    if not shown:
        return ""
    made = ['<section aria-labelledby="tokens"><h2 id="tokens">What the tokens look like</h2>']
    for name in shown:
        source = base64.b64encode((out / name).read_bytes()).decode()
        about = escape(pictures[name])
        made.append(f'<figure><figcaption>{about}</figcaption><img alt="{about}" src="data:image/png;base64,{source}">')
        made.append("</figure>")
    return "".join([*made, "</section>"])


def listed(values: Mapping[str, Any]) -> str:
    """Names and values; what is nested is spelled out."""
    spelled = {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in values.items()
    }
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in spelled.items())}</dl>"


def embed_json(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value).replace("<", "\\u003c")
