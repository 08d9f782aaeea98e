"""Whose work runs: the outermost phase counts, in each thread for itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenreduce.budget.phase import current_phase, working


def test_the_outermost_of_nested_phases_counts() -> None:
    assert current_phase() == "model"
    with working("reducer"):
        assert current_phase() == "reducer"
        with working("restore"):
            assert current_phase() == "reducer"
        assert current_phase() == "reducer"
        with working("model"):
            assert current_phase() == "reducer"
    assert current_phase() == "model"
    with working("restore"):
        assert current_phase() == "restore"
        with working("reducer"):
            assert current_phase() == "restore"
    assert current_phase() == "model"


def test_a_phase_ends_with_an_exception_too() -> None:
    with pytest.raises(ArithmeticError), working("reducer"), working("restore"):
        raise ArithmeticError
    assert current_phase() == "model"


def test_threads_have_phases_of_their_own() -> None:
    def inside() -> tuple[str, str]:
        before = current_phase()
        with working("restore"):
            return before, current_phase()

    with working("reducer"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == ("model", "restore")
        assert current_phase() == "reducer"
