"""What the JSON files of the command line hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROW = {"method", "budget", "options", "macs", "uncounted", "flops_share", "tokens_left", "top1", "top5", "top1_change"}
ROW |= {"class_error", "token_error"}


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = json.loads(path.read_text())
    assert {"command", "settings", "environment", "rows"} == data.keys()
    return data["rows"], data["settings"]
