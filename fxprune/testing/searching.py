"""Look for a drawn value that fails a check, and make it as simple as possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")


@dataclass(frozen=True)
class FailedValue(Generic[T]):
    """A value that fails, as simple as it became, and what the check raised on it."""

    value: T
    error: Exception


def simplest_failure(
    values: st.SearchStrategy[T],
    check: Callable[[T], None],
    *,
    max_examples: int,
    start: int,
    shrink: bool = True,
) -> FailedValue[T] | None:
    """Check drawn values until one fails; return the simplest that does, or None."""
    failed: list[FailedValue[T]] = []

    @seed(start)
    @settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(values)
    def search(value: T) -> None:
        try:
            check(value)
        except Exception as error:
            failed.append(FailedValue(value, error))
            raise

    try:
        search()
    except Exception:
        # Hypothesis fails the simplest one last; of one that fails now and then it says so itself.
        if not failed:
            raise
    return failed[-1] if failed else None
