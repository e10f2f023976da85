"""Look for a drawn value that fails a check, and make it as simple as possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """A value that fails, and what the check raised.

    Args:
        value: as simple as it became.
        error: what was raised on it.
    """

    value: T
    error: Exception


def simplest_failure(
    values: st.SearchStrategy[T],
    check: Callable[[T], None],
    *,
    max_examples: int,
    start: int,
    shrink: bool = True,
) -> Found[T] | None:
    """Check drawn values; return the simplest that fails, or None.

    Args:
        values: what to draw from.
        check: raises where a value fails.
        max_examples: how many values to draw.
        start: seed of the draw.
        shrink: whether to look for a simpler one than the first that fails.
    """
    failed: list[Found[T]] = []

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
    def held(value: T) -> None:
        try:
            check(value)
        except Exception as error:
            failed.append(Found(value, error))
            raise

    try:
        held()
    except Exception:
        # Hypothesis fails the simplest one last; of one that fails now and then it says so itself.
        if not failed:
            raise
    return failed[-1] if failed else None
