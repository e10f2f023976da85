"""Plant mutants and compile drawn Programs until the checker catches each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.compiler.build import compile
from fxprune.compiler.run import capture
from fxprune.errors import InvariantError
from fxprune.program.program import Program
from tests.mutants.mutant import Mutant, planted
from tests.mutants.programs import Drawn


@dataclass(frozen=True)
class Hunt:
    """How a mutant fared.

    Attributes:
        name: the mutant's.
        by: what the checker said; None where it did not catch the mutant.
        programs: how many Programs were compiled until then.
        seconds: of CPU.
        crash: what else was raised on the way, the last of it; it does not count.
    """

    name: str
    by: str | None
    programs: int
    seconds: float
    crash: str | None = None


class Pool:
    """Drawn Programs, each captured once, unless masks of its model have to be adopted."""

    def __init__(self, draws: Iterable[Drawn]) -> None:
        self.draws = list(draws)
        self._captured: dict[int, Any] = {}

    def capture(self, draw: Drawn) -> None:
        """Capture one, unless that has to be done each time anew."""
        if draw.kind != "hooked" and draw.number not in self._captured:
            self._captured[draw.number] = capture(*draw.model())

    def compiled(self, draw: Drawn) -> Program:
        """Compile one as a user would.

        Raises:
            InvariantError: the checker found something.
        """
        self.capture(draw)
        model, args, kwargs = self._captured.get(draw.number), (), {}
        if model is None:
            model, args, kwargs = draw.model()
        torch.manual_seed(draw.number)  # rules may draw without a seed of their own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(model, draw.recipe(), args, kwargs).program


def hunt(mutant: Mutant, pool: Pool) -> Hunt:
    """Compile with a fault planted, until the checker says so."""
    start, crash = time.process_time(), None
    for tried, draw in enumerate(pool.draws, 1):
        pool.capture(draw)
        try:
            with planted(mutant):
                pool.compiled(draw)
        except InvariantError as error:
            return Hunt(mutant.name, str(error), tried, time.process_time() - start, crash)
        except Exception as error:  # noqa: BLE001 - a fault may crash, which catches nothing
            crash = f"{type(error).__name__}: {error}"
    return Hunt(mutant.name, None, len(pool.draws), time.process_time() - start, crash)


def alarm_on(draw: Drawn) -> str | None:
    """Return what the checker says of a Program without a fault; None where it is content.

    Raises:
        FxpruneError: the Program was not compiled, as its recipe does not fit it.
    """
    try:
        Pool([draw]).compiled(draw)
    except InvariantError as error:
        return str(error)
    return None
