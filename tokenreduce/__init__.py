"""tokenreduce: make vision transformers process fewer tokens, without training."""

from tokenreduce.advising import Advice, advise
from tokenreduce.errors import InvalidTypeError, InvalidValueError, TokenReduceError
from tokenreduce.flops import FlopCount, count_flops
from tokenreduce.functional import apply, plan, restore
from tokenreduce.patching import compatible, load_patch, patch, reduced, report, save_patch, unpatch
from tokenreduce.registry import Reducer, describe, methods, register
from tokenreduce.schedule import Schedule
from tokenreduce.token_map import TokenMap
from tokenreduce.tokens import Tokens

__version__ = "0.1.0"

__all__ = [
    "Advice",
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
    "compatible",
    "count_flops",
    "describe",
    "load_patch",
    "methods",
    "patch",
    "plan",
    "reduced",
    "register",
    "report",
    "restore",
    "save_patch",
    "unpatch",
]
