"""Drawn networks, with drawn masks: the shrunk Program does what the masked one does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from fxprune.compiler.shrinking import cut_channels
from fxprune.errors import CaptureError
from fxprune.program.forks import fork
from fxprune.program.program import Program
from tests.models.shrink_nets import Drawn, captured, drawn_nets
from tests.tools.profiles import examples
from tests.tools.shrink_checks import BOUND, gap, parameters

SLOW: Any = list(HealthCheck)


def cut(program: Program, round_to: int = 1) -> Program:
    work = fork(program)
    cut_channels(work, round_to)
    return work


def built(drawn: Drawn) -> Program:
    """Capture a drawn network; images may have become smaller than a kernel."""
    try:
        return captured(drawn)
    except (CaptureError, RuntimeError, ValueError):
        assume(False)
        raise


def holds(drawn: Drawn, round_to: int) -> None:
    program = built(drawn)
    small = cut(program, round_to)
    assert gap(program, small) < BOUND
    assert parameters(small) <= parameters(program)
    again = cut(small, round_to)
    assert again.captured.shrinks[-1].maps == ()


@given(drawn_nets, st.sampled_from([1, 1, 1, 2, 4]))
@examples(4, 8, suppress_health_check=SLOW)
@example(Drawn((("twice", 6),), ("both",), "flat", False, 737), 1)
@example(Drawn((("steps", 6), ("group_norm", 4)), ("rows",), "mean", False, 1134), 1)
@example(Drawn((("prelu", 4), ("depthwise", 3)), ("columns",), "mean", False, 5480), 1)
@example(Drawn((("residual", 2), ("order", 6)), ("rows",) * 3, "images", True, 9849), 1)
def test_drawn_networks_keep_their_function(drawn: Drawn, round_to: int):
    holds(drawn, round_to)


@pytest.mark.thorough
@given(drawn_nets, st.sampled_from([1, 1, 1, 2, 4]))
@settings(max_examples=300, suppress_health_check=SLOW)
def test_three_hundred_drawn_networks_keep_their_function(drawn: Drawn, round_to: int):
    holds(drawn, round_to)
