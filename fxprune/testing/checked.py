"""What a battery of checks did: how often, and what was refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Checked", "Tally"]


@dataclass(frozen=True)
class Checked:
    """What `check_pass` or `check_model` checked.

    Args:
        subject: the pass or the model.
        checks: how many cases each check held in, by its name.
        refused: why cases were refused, and how many of them.
        edits: how many edits a pass made over all cases.

    Example:
        >>> print(Checked("drop-repeats", {"promise": 30}, {"it has no relu": 2}, edits=9))
        drop-repeats: 30 checks, 9 edits
          promise: 30 cases
          refused 2 cases: it has no relu
    """

    subject: str
    checks: dict[str, int]
    refused: dict[str, int]
    edits: int = 0

    @property
    def cases(self) -> int:
        """How many checks held, over all cases."""
        return sum(self.checks.values())

    def __str__(self) -> str:
        edits = f", {self.edits} edits" if self.edits else ""
        lines = [f"{self.subject}: {self.cases} checks{edits}"]
        lines += [f"  {name}: {count} {_cases(count)}" for name, count in self.checks.items()]
        lines += [f"  refused {n} {_cases(n)}: {why}" for why, n in self.refused.items()]
        return "\n".join(lines)


@dataclass
class Tally:
    """Counts what is checked, while it is.

    Args:
        subject: the pass or the model.
    """

    subject: str
    checks: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    edits: int = 0

    def checked(self) -> Checked:
        """Return what was counted."""
        return Checked(self.subject, dict(self.checks), dict(self.refused), self.edits)


def _cases(count: int) -> str:
    return "case" if count == 1 else "cases"
