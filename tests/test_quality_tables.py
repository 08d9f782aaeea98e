"""Tables and sentences of quality at equal compute, from small results made up here."""

from __future__ import annotations

from typing import Any

import pytest
from scripts import script

quality_tables = script("quality_tables")


def lines(table: str) -> str:
    """A table as it is written in these tests, without the indentation."""
    return "\n".join(line.strip() for line in table.strip().splitlines())


# of a real model


def of_real(method: str, share: float, ratios: tuple[float, ...], tokens: int = 70) -> dict[str, Any]:
    """A row of the real model: `ratios` of the means and image by image, of class, token and saliency error."""
    row = {"method": method, "budget": f"flops={share}", "flops_share": share + 0.0004, "tokens_left": tokens}
    for i, name in enumerate(("class_error", "token_error", "saliency_error")):
        row[name] = 0.01 * ratios[2 * i]
        for end, ratio in (("_of_tome", ratios[2 * i]), ("_of_tome_geometric", ratios[2 * i + 1])):
            row |= {f"{name}{end}": ratio, f"{name}{end}_interval": [ratio - 0.1, ratio + 0.2]}
    return row


def results(*, ward: float = 0.5, atc: float = 0.9, **changes: Any) -> Any:
    """Of a run with rows of five methods; `ward` and `atc` are the ratios of their token errors at all shares."""
    rows: list[dict[str, Any]] = [{"method": "unpatched", "budget": None, "macs": 100, "flops_share": 1.0}]
    for share in (0.8, 0.6, 0.45):
        rows += [
            of_real("tome", share, (1,) * 6),
            of_real("pool", share, (3, 2, 9, 8, 1.5, 1.4)),
            of_real("ward", share, (0.8, 0.7, ward, ward, 0.6, 0.55)),
            of_real("atc", share, (0.9, 0.95, atc, atc, 0.8, 0.75)),
            of_real("random", share, (4, 3, 6, 5, 2, 2.5)),
            {"method": "rlt", "budget": f"flops={share}", "refused": "it needs frames"},
        ]
    made = {"image_size": 224, "images": 64, "photographs": ["china", "coffee"], "further": False, "arms_left": 0}
    return made | {"rows": rows} | changes


def test_the_real_model() -> None:
    assert quality_tables.real(results(), 0.6) == lines("""
        | method | share | tokens left | class error | image by image | token error | image by image | saliency error | image by image |
        |---|---:|---:|---:|---:|---:|---:|---:|---:|
        | `ward` | 0.600 | 70 | 0.80 (0.70-1.00) | 0.70 (0.60-0.90) | 0.50 (0.40-0.70) | 0.50 (0.40-0.70) | 0.60 (0.50-0.80) | 0.55 (0.45-0.75) |
        | `atc` | 0.600 | 70 | 0.90 (0.80-1.10) | 0.95 (0.85-1.15) | 0.90 (0.80-1.10) | 0.90 (0.80-1.10) | 0.80 (0.70-1.00) | 0.75 (0.65-0.95) |
        | `tome` | 0.600 | 70 | 1.00 (0.90-1.20) | 1.00 (0.90-1.20) | 1.00 (0.90-1.20) | 1.00 (0.90-1.20) | 1.00 (0.90-1.20) | 1.00 (0.90-1.20) |
        | `random` | 0.600 | 70 | 4.00 (3.90-4.20) | 3.00 (2.90-3.20) | 6.00 (5.90-6.20) | 5.00 (4.90-5.20) | 2.00 (1.90-2.20) | 2.50 (2.40-2.70) |
        | `pool` | 0.600 | 70 | 3.00 (2.90-3.20) | 2.00 (1.90-2.20) | 9.00 (8.90-9.20) | 8.00 (7.90-8.20) | 1.50 (1.40-1.70) | 1.40 (1.30-1.60) |

        `tome` itself: class error 0.0100, token error 0.0100, saliency error 0.0100. Refused: `rlt`.
    """)  # noqa: E501


def test_what_was_measured_on_and_how_it_is_measured_again() -> None:
    assert quality_tables.setting(results()) == lines("""
        64 squares of 224 x 224 pixels, cut out of 2 photographs: china, coffee.

        ```bash
        python benchmarks/quality.py --model dinov2_small
        python benchmarks/make_table.py --write
        ```
    """)
    other = quality_tables.setting(results(image_size=518, further=True, arms_left=3))  # 9 are usual at this size
    assert "china, coffee. **3 arms are still to be measured.**" in other
    assert "\npython benchmarks/quality.py --model dinov2_small --size 518 --photographs DIR --count 64\n" in other


def test_the_verdict() -> None:
    assert quality_tables.verdict(results()) == (
        "A smaller class and token error than `tome`, image by image, at 80, 60 and 45 % of the compute: `ward` and "
        "`atc`. For `ward` the interval of the ratio of mean token errors lies below 1 at all three. A larger mean "
        "class or token error than `random` at 60 %: `pool`."
    )
    assert "below 1 at all three" not in quality_tables.verdict(results(ward=1.1, atc=1.2))
    assert quality_tables.verdict(results(ward=1.1, atc=1.2)).startswith("No method has a smaller class")
    assert "For none of them the interval" in quality_tables.verdict(results(ward=0.85))


@pytest.mark.parametrize("share", [0.8, 0.6, 0.45])
def test_one_share_is_enough_to_lose_the_verdict(share: float) -> None:
    data = results()
    row = quality_tables.rows_at(data, share)["ward"]
    row["token_error_of_tome_interval"] = [0.4, 1.01]
    assert quality_tables.better(data) == ["ward", "atc"] and not quality_tables.certain(data, "ward")
    row["class_error_of_tome_geometric"] = 1.01
    assert quality_tables.better(data) == ["atc"]


def test_the_best_of_each_error() -> None:
    assert quality_tables.best(results()).splitlines()[:3] == [
        "| compute | class error | token error | saliency error |",
        "|---:|---|---|---|",
        "| 80% | `ward` 0.70, `atc` 0.95, `tome` 1.00 | `ward` 0.50, `atc` 0.90, `tome` 1.00 "
        "| `ward` 0.55, `atc` 0.75, `tome` 1.00 |",
    ]


def test_why_methods_are_advised() -> None:
    assert quality_tables.advised(results(ward=0.56)).replace("\n  ", " ") == (
        "- `ward` is advised where it pays; otherwise `tome`, where that pays. On the real model of "
        "[quality.md](quality.md), at 60 % of the compute, the class, token and saliency errors of `ward` are "
        "0.70, 0.56 and 0.55 of `tome`'s, image by image."
    )


# with labels


def of_quality(method: str, errors: tuple[float, float], ratios: tuple[float, float], share: float = 0.6) -> Any:
    row = {"method": method, "budget": f"flops={share}", "tokens_left": 79, "top1": 0.9085, "top1_change": -0.0012}
    row["top1_change_interval"] = [-0.0034, 0.0056]
    for name, error, ratio in zip(("class_error", "token_error"), errors, ratios, strict=True):
        row |= {name: error, f"{name}_of_tome": ratio, f"{name}_of_tome_interval": [ratio - 0.1, ratio + 0.2]}
    return row


def test_quality_with_labels() -> None:
    rows = [
        of_quality("tome", (0.0007, 0.043), (1.0, 1.0)),
        of_quality("ward", (0.0003, 0.012), (0.42, 0.28)),
        of_quality("pool", (0.0001, 0.001), (0.1, 0.2), share=0.8),
        {"method": "gtp", "budget": "flops=0.6", "refused": "not reached"},
    ]
    assert quality_tables.labelled({"rows": rows}, 0.6) == lines("""
        | method | tokens left | top-1 | change, points | 95 % interval | class error | of tome's | token error | of tome's |
        |---|---:|---:|---:|---:|---:|---:|---:|---:|
        | `ward` | 79 | 90.85% | -0.12 | -0.34 to +0.56 | 0.00030 | 0.42 (0.32-0.62) | 0.01200 | 0.28 (0.18-0.48) |
        | `tome` | 79 | 90.85% | -0.12 | -0.34 to +0.56 | 0.00070 | 1.00 (0.90-1.20) | 0.04300 | 1.00 (0.90-1.20) |
        | `gtp` | refused: not reached | | | | | | | |
    """)  # noqa: E501


def test_ward_against_tome() -> None:
    def rows(share: float, ward: float) -> list[Any]:
        others = [of_quality("pool", (0.2, 0.1), (2, 1), share), of_quality("atc", (0.3, 0.1), (3, 1), share)]
        refused = {"method": "gtp", "budget": f"flops={share}", "refused": "not reached"}
        return [of_quality("ward", (ward, 0.1), (share / 2, share / 4), share), *others, refused]

    data = {"rows": [*rows(0.8, 0.25), *rows(0.6, 0.1), *rows(0.45, 0.4)]}
    assert quality_tables.ward_against_tome({"first": data}) == lines("""
        | model | compute | class error of `tome`'s | token error of `tome`'s | methods with a smaller class error |
        |---|---:|---:|---:|---|
        | first | 80% | 0.40 | 0.20 | `pool` |
        | first | 60% | 0.30 | 0.15 | none |
        | first | 45% | 0.23 | 0.11 | `atc`, `pool` |
    """)
