"""How much a test tries: a part in the quick tests, all of it in the thorough ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
from hypothesis import settings


def examples(quick: int, thorough: int, **others: Any) -> Callable[[Any], Any]:
    """Set how many examples hypothesis draws for a test in each of the two profiles.

    The thorough tests run such a test once more, with all of its examples.

    Args:
        quick: in the quick tests.
        thorough: in the thorough tests.
        others: other settings.
    """
    if settings.get_current_profile_name() != "thorough":
        return settings(max_examples=quick, **others)
    more = settings(max_examples=thorough, **others)
    return lambda test: pytest.mark.thorough(more(test))


captures = examples(10, 100)
"""For a test each of whose examples is a capture."""


def thorough_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Mark the cases that only the thorough tests run: all but the quick ones."""
    return [thorough_unless(case in quick, case) for case in cases]


def thorough_unless(quick: bool, *case: Any) -> Any:
    """Mark a case that only the thorough tests run, unless it is quick."""
    return pytest.param(*case, marks=() if quick else pytest.mark.thorough)
