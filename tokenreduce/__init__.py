"""tokenreduce: make vision transformers process fewer tokens, without training."""

from tokenreduce.budget.counting import FlopCount, count_flops
from tokenreduce.budget.schedule import Schedule
from tokenreduce.errors import InvalidTypeError, InvalidValueError, TokenReduceError
from tokenreduce.lab.search.calibrating import calibrate
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.speed.advising import Advice, advise
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.order import stable_order
from tokenreduce.patching.capturing import graph
from tokenreduce.patching.compatibility import compatible
from tokenreduce.patching.saving import load_patch, save_patch
from tokenreduce.patching.verbs import patch, reduced, report, unpatch
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.functional import apply, plan, restore
from tokenreduce.reducers.registry import describe, methods, register
from tokenreduce.reducers.tokens import Tokens

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Calibration",
    "FlopCount",
    "InvalidTypeError",
    "InvalidValueError",
    "Reducer",
    "Schedule",
    "TokenMap",
    "TokenReduceError",
    "Tokens",
    "advise",
    "apply",
    "calibrate",
    "compatible",
    "count_flops",
    "describe",
    "graph",
    "keep_tokens",
    "load_patch",
    "methods",
    "patch",
    "plan",
    "reduced",
    "register",
    "report",
    "restore",
    "save_patch",
    "stable_order",
    "unpatch",
]
