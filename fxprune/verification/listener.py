"""Who sees a Program before and after each pass of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxprune.program import Program
from fxprune.rewrite import Facts, Pass
from fxprune.verification.certificate import Certificate


class Watch:
    """Sees a Program before and after each pass; what it raises stops the run. This one is blind.

    Attributes:
        checks: whether it holds passes to anything; where not, a step needs no check of its own.
    """

    checks: bool = False

    def begin(self, program: Program) -> None:
        """See the Program before the first pass."""

    def before(self, program: Program, step: Pass) -> None:
        """See the Program before a pass."""

    def after(self, program: Program, step: Pass, facts: Facts) -> None:
        """See the Program after a pass, with the facts that are there."""

    def stage(self, program: Program, rules: Iterable[Any], facts: Facts) -> None:
        """See the Program after all passes of rules that were carried out together."""

    def close(self, name: str, certificate: Certificate) -> None:
        """See what was found of a step whose outputs are close in float64."""
