"""`benchmarks/serving.py` on a tiny model: real servers in processes of their own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from scripts import script

for library in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(library, reason="a library is not installed: pip install 'tokenreduce[serve]' httpx")

serving = script("serving")


def test_both_servers_answer_and_results_are_written(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    small = ["--model", "test_vit", "--batch", "4", "--concurrency", "8", "--requests", "16", "--rounds", "2"]
    serving.main([*small, "--threads", "1", "--out", str(out)])
    data = json.loads(out.read_text())
    whole, fewer = data["rows"]
    assert [whole["method"], fewer["method"]] == ["unpatched", "ward"] and whole["gain"] == 1
    assert all(len(row["rounds"]) == 2 and 1 <= row["batch"] <= 4 for row in data["rows"])
    assert fewer["gain"] == pytest.approx(sum(fewer["gains"]) / 2)
    assert data["decoding_ms"] > 0 and data["versions"]["torch"]


def test_gains_are_those_of_the_same_round() -> None:
    found = {None: [{"requests_per_second": n} for n in (10, 20, 40)]}
    found["ward"] = [{"requests_per_second": n} for n in (15, 28, 60)]
    whole, fewer = serving.rows(found)
    assert fewer["gains"] == [1.5, 1.4, 1.5] and fewer["gain"] == 1.5
    assert whole["requests_per_second"] == 20 and fewer["requests_per_second"] == 28


def test_a_server_that_does_not_start_is_no_endless_wait() -> None:
    args = serving.parse(["--model", "test_vit", "--flops", "2"])  # no share
    with pytest.raises(RuntimeError, match="before it served"), serving.server(args, "ward"):
        pass


def test_files_are_jpegs_as_large_as_photographs() -> None:
    files = serving.photographs(2)
    assert all(Image.open(io.BytesIO(data)).size == (500, 375) for data in files)
    assert files[0] != files[1] and all(20_000 < len(data) < 200_000 for data in files)
