"""Which figures of a plan hold for every run, where rules draw from torch's global generator."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from fxprune.recipe import Rule

__all__ = ["Figures", "Reproducible", "reproducible_after", "total_is_reproducible"]


class Reproducible(IntEnum):
    """What of a parameter's mask is the same in every run."""

    MASK = 0
    """Which entries are alive."""
    COUNT = 1
    """How many entries are alive, but not which."""
    NOTHING = 2
    """Neither."""


class Figures(NamedTuple):
    """What holds for every run once a rule has pruned a parameter.

    Args:
        mask: what of its mask.
        counts: whether the numbers of living and of pruned units are exact.
        zeros: whether the number of entries that become zero is exact.
    """

    mask: Reproducible
    counts: bool
    zeros: bool


_NO_FIGURES = Figures(Reproducible.NOTHING, counts=False, zeros=False)


def reproducible_after(
    rule: Rule, before: Mapping[str, Reproducible], *, drawn: bool, masked: frozenset[str]
) -> dict[str, Figures]:
    """Tell what holds for every run after a rule, for each parameter that it selects.

    Args:
        rule: the rule, or the first of a group.
        before: what of the mask held before it, of each parameter that it selects.
        drawn: whether it drew from a global generator.
        masked: the parameters that had a mask before it.
    """
    if (rule.scope == "local" and not rule.coupled) or len(before) == 1:
        return {
            name: _alone(rule, known, drawn=drawn, masked=name in masked)
            for name, known in before.items()
        }
    if drawn or any(before.values()):
        return dict.fromkeys(before, _NO_FIGURES)
    return dict.fromkeys(before, Figures(Reproducible.MASK, counts=True, zeros=True))


def total_is_reproducible(
    rule: Rule, before: Mapping[str, Reproducible], after: Mapping[str, Figures]
) -> bool:
    """Tell whether the number that a rule prunes in all of its parameters is exact."""
    # One budget over entries is as large as what is alive says, wherever it is spent.
    ranked = rule.score_name is not None and rule.granularity_name == "element"
    counted = all(known is not Reproducible.NOTHING for known in before.values())
    return all(figures.counts for figures in after.values()) or (ranked and counted)


def _alone(rule: Rule, known: Reproducible, *, drawn: bool, masked: bool) -> Figures:
    """Tell what holds of a parameter that is pruned on its own."""
    if known is Reproducible.MASK and not drawn:
        return Figures(Reproducible.MASK, counts=True, zeros=True)
    if rule.method == "identity":
        return Figures(known, counts=known is not Reproducible.NOTHING, zeros=True)
    if rule.score_name is None or known is Reproducible.NOTHING:
        return _NO_FIGURES
    if rule.granularity_name == "element":
        return Figures(Reproducible.COUNT, counts=True, zeros=True)
    if known is Reproducible.COUNT:
        return _NO_FIGURES
    # Channels of a parameter with a mask may hold different numbers of living entries.
    left = Reproducible.NOTHING if masked else Reproducible.COUNT
    return Figures(left, counts=True, zeros=not masked)
