"""A patch as a file of JSON: how `save_patch` and `calibrate` write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenreduce.budget.schedule import Schedule
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.reducers.registry import lookup

FORMAT = 1
COMMON = {"tokenreduce", "method", "options", "calibration"}
WITHIN = {*COMMON, "schedule", "restore", "prop_attn", "scan_conv", "scan_gap"}
BEFORE = {*COMMON, "keep", "positions"}  # of a patch of what enters a language model


class Recorded(NamedTuple):
    """What a file says of a patch."""

    path: str
    method: str
    options: dict[str, Any]
    schedule: Schedule | None
    restore: bool | str = "auto"
    prop_attn: bool | str = "auto"
    scan_conv: str = "auto"
    scan_gap: str = "auto"
    keep: Any = None  # of a patch of what enters a language model
    positions: str = "auto"

    def agree(self, method: str | None, options: dict[str, Any]) -> None:
        """Raise if a method or options were given beside the file that are not those in it."""
        if method is not None and method != self.method:
            raise InvalidValueError(
                f"{self.path} is a schedule for {self.method}, not for {method!r}: counts that suit one method do not "
                "suit another; leave the method out, or calibrate this one"
            )
        other = [name for name, value in options.items() if self.options.get(name, value) != value]
        unknown = [name for name in options if name not in self.options]
        if other or unknown:
            raise InvalidTypeError(
                f"{', '.join(other or unknown)} was given, but {self.path} was made with "
                f"{self.options or 'no options'}; leave options out beside a file"
            )


def read_patch(path: str | Path) -> Recorded:
    """What the file says.

    Raises: ValueError for a file that is no such record.
    """
    try:
        data = json.loads(Path(path).read_text())
        if data["tokenreduce"] != FORMAT or isinstance(data["tokenreduce"], bool):
            raise InvalidValueError(f"{path} has patch format {data['tokenreduce']!r}; this version reads {FORMAT}")
        known, where = (BEFORE, "beside keep") if "keep" in data else (WITHIN, "here")
        if data.keys() - known:
            raise InvalidValueError(
                f"{path} says {', '.join(sorted(data.keys() - known))}, which this version does not read {where}; "
                f"valid {where}: {', '.join(sorted(known))}; save or calibrate it anew"
            )
        method = data["method"]
        options = {**lookup(method).former, **data["options"]}
        if "keep" in data:
            keep = data["keep"]
            keep = {int(layer): value for layer, value in keep.items()} if isinstance(keep, dict) else keep
            return Recorded(str(path), method, options, None, keep=keep, positions=data["positions"])
        schedule = Schedule.from_json(data["schedule"])
        scan = {name: data[name] for name in ("scan_conv", "scan_gap") if name in data}
        return Recorded(str(path), method, options, schedule, data["restore"], data["prop_attn"], **scan)
    except InvalidValueError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValueError(f"{path} is not a patch written by save_patch ({error!r})") from None
    except OSError as error:
        raise InvalidValueError(f"{path} cannot be read ({error}); name a file of save_patch or calibrate") from None
