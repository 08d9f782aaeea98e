"""The page of `compare` in a real browser without a network: plots, sorting, answers, accessibility."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenreduce import Schedule, patch, save_patch
from tokenreduce.lab.comparing import Comparison, Speed, compare_methods, write_report
from tokenreduce.lab.comparing.page import embed_json, page
from tokenreduce.lab.quality.loading import Setup
from tokenreduce.lab.shipped.fashion_vit import fashion_vit

pytest.importorskip("plotly")
LARGEST = 6_000_000  # bytes
SHARES = [0.9, 0.6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Comparison:
    save_patch(patch(fashion_vit(), "tome", schedule=Schedule.keep({3: 0.5})), folder / "own.json")
    found = compare_methods(
        ["ward", "tome", "dtop"],
        SHARES,
        out=folder,
        setup=Setup(limit=8),
        schedules=[folder / "own.json"],
        speed=Speed(2, 2, 0.0),
    )
    write_report(found, folder, "tokenreduce compare --model 'x < y'")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    chrome = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chrome is None or driver is None:
        warnings.warn("the page was not opened: install Chromium and chromedriver to test it", stacklevel=1)
        pytest.skip("Chromium and chromedriver are not installed, so that the page is not tested")
    options = selenium.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1400"):
        options.add_argument(flag)
    options.add_argument("--proxy-server=127.0.0.1:9")  # nobody answers there: what needs a network fails
    options.add_argument("--disable-background-networking")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def opened(browser: Any, comparison: Comparison, folder: Path) -> Any:
    browser.get((folder / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    return browser


def found(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def test_plots_are_drawn_without_a_word_in_the_console_or_a_request(opened: Any) -> None:
    figures = found(opened, ".plot")
    assert len(figures) == 5
    for figure in figures:
        assert figure.find_elements("css selector", "svg.main-svg .scatterlayer .trace")
        assert "Infinity" not in figure.text and "NaN" not in figure.text
    legends = {one.text for one in found(opened, ".plot .legendtext")}
    assert legends == {"ward", "tome", "calibrated", "unpatched"}
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)


def test_accessibility_has_no_serious_findings(opened: Any) -> None:
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        violations = axe.run(opened)["violations"]
        assert [(one["id"], one["impact"]) for one in violations if one["impact"] in ("serious", "critical")] == []
        assert violations == []


def test_tables_sort_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    headers = found(opened, "table.sortable thead th")
    column = next(i for i, header in enumerate(headers) if header.text.split()[:2] == ["token", "error"])

    def values() -> list[float]:
        cells = found(opened, f"table.sortable tbody tr > :nth-child({column + 1})")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    before = values()
    assert len(before) == 6 and before != sorted(before)
    button = headers[column].find_element("css selector", "button")
    button.send_keys(Keys.ENTER)
    assert headers[column].get_attribute("aria-sort") == "ascending" and values() == sorted(before)
    button.send_keys(Keys.SPACE)
    assert headers[column].get_attribute("aria-sort") == "descending" and values() == sorted(before, reverse=True)
    headers[0].find_element("css selector", "button").send_keys(Keys.ENTER)
    names = [cell.text for cell in found(opened, "table.sortable tbody tr > :first-child")]
    assert names == sorted(names) and len(found(opened, "th[aria-sort]")) == 1


def test_the_form_answers_for_any_budget(opened: Any, comparison: Comparison) -> None:
    most, answer = found(opened, "input[name=most]")[0], found(opened, "output")[0]
    opened.execute_script("document.querySelector('select').value = 'compute'")
    for share, expected in ((95, "ward at flops=0.9"), (62, "at flops=0.6"), (10, "Nothing that was measured")):
        most.clear()
        most.send_keys(str(share))
        assert expected in answer.text
    assert comparison.rows[0]["method"] == "unpatched"


def test_the_page_is_small_and_whole(comparison: Comparison, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert (folder / "report.html").stat().st_size <= LARGEST
    assert "tokenreduce compare --model &#x27;x &lt; y&#x27;" in text and "{{" not in text.split("<script")[0]
    assert text.split("<script")[0].count('src="data:image/png;base64,') == 2 and "auxiliary" in text
    for word in ('lang="en"', "torch", "pixels", "weights", "At 60% of the multiply-adds"):
        assert word in text
    assert "<script src" not in text and '<link rel="stylesheet' not in text


def test_texts_cannot_leave_their_place(comparison: Comparison, folder: Path) -> None:
    comparison.remarks.append("<script>alert(1)</script> {{plotly}}")
    text = page(comparison, {}, folder, {"name": "</dd><b>"}, "</pre><i>")
    assert "<script>alert" not in text and "</dd><b>" not in text and "</pre><i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{plotly}}" in text
    assert json.loads(embed_json("</script>")) == "</script>" and "</" not in embed_json("</script>")
    comparison.remarks.pop()


def test_a_missing_plotly_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ValueError, match=r"pip install 'tokenreduce\[report\]'"):
        run("compare", "--model", "no_such_model")
