"""Candidates that Optuna proposes: two-parameter sigmoids and powers between those of the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.search.curves import Curve, Power, Sigmoid
from tokenreduce.lab.search.trials import Candidate, Variant

WORST = 10.0  # the score of what cannot run


def need_optuna() -> Any:
    """The library, if it is installed.

    Raises: ValueError if not.
    """
    try:
        import optuna
    except ImportError:
        raise InvalidValueError(
            "trials are proposed by Optuna, which is not installed: pip install 'tokenreduce[calibrate]', or give "
            "trials=0, which searches the grid of shapes alone"
        ) from None
    return optuna


def propose(
    variants: Sequence[Variant],
    depth: int,
    trials: int,
    seed: int,
    make: Callable[[Variant, Curve], Candidate],
    judge: Callable[[Candidate], float],
) -> list[Candidate]:
    """So many candidates, each proposed in the light of what `judge` said of those before."""
    optuna = need_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=False))
    found = []
    for _ in range(trials):
        trial = study.ask()
        variant = variants[trial.suggest_int("variant", 0, len(variants) - 1) if len(variants) > 1 else 0]
        try:
            candidate = make(variant, suggest(trial, depth))
        except InvalidValueError:
            study.tell(trial, WORST)
            continue
        found.append(candidate)
        study.tell(trial, judge(candidate))
    return found


def suggest(trial: Any, depth: int) -> Curve:
    """The shape of one proposal."""
    if trial.suggest_categorical("family", ["sigmoid", "power"]) == "sigmoid":
        return Sigmoid(trial.suggest_float("middle", 0, 0.8), trial.suggest_float("width", 0.05, 0.5, log=True))
    start = trial.suggest_int("start", 0, max(1, depth // 3))
    end = trial.suggest_int("end", max(start + 1, depth // 2), depth)
    return Power(round(trial.suggest_float("lam", -2, 1), 3), start, end)
