"""How far a plan's figures hold for every run, where rules draw from torch's global generator."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from fxprune.recipe import Rule

__all__ = ["Certainty", "Known", "known_after", "total_is_exact"]


class Known(IntEnum):
    """What is known before a run of a parameter's mask."""

    ALL = 0
    """Which entries are alive."""
    COUNT = 1
    """How many entries are alive, but not which."""
    NOTHING = 2
    """Neither."""


class Certainty(NamedTuple):
    """What holds for every run once a rule has pruned a parameter.

    Args:
        known: what is known of its mask.
        counts: whether the numbers of living and of pruned units are exact.
        zeros: whether the number of entries that become zero is exact.
    """

    known: Known
    counts: bool
    zeros: bool


_NOTHING = Certainty(Known.NOTHING, counts=False, zeros=False)


def known_after(
    rule: Rule, before: Mapping[str, Known], *, drawn: bool, masked: frozenset[str]
) -> dict[str, Certainty]:
    """Tell what holds for every run after a rule, for each parameter that it selects.

    Args:
        rule: the rule, or the first of a group.
        before: what is known before it, of each parameter that it selects.
        drawn: whether it drew from a global generator.
        masked: the parameters that had a mask before it.
    """
    if (rule.scope == "local" and not rule.coupled) or len(before) == 1:
        return {
            name: _alone(rule, known, drawn=drawn, masked=name in masked)
            for name, known in before.items()
        }
    if drawn or any(before.values()):
        return dict.fromkeys(before, _NOTHING)
    return dict.fromkeys(before, Certainty(Known.ALL, counts=True, zeros=True))


def total_is_exact(rule: Rule, before: Mapping[str, Known], after: Mapping[str, Certainty]) -> bool:
    """Tell whether the number that a rule prunes in all of its parameters is exact."""
    # One budget over entries is as large as what is alive says, wherever it is spent.
    ranked = rule.score_name is not None and rule.granularity_name == "element"
    counted = all(known is not Known.NOTHING for known in before.values())
    return all(certainty.counts for certainty in after.values()) or (ranked and counted)


def _alone(rule: Rule, known: Known, *, drawn: bool, masked: bool) -> Certainty:
    """Tell what holds of a parameter that is pruned on its own."""
    if known is Known.ALL and not drawn:
        return Certainty(Known.ALL, counts=True, zeros=True)
    if rule.method == "identity":
        return Certainty(known, counts=known is not Known.NOTHING, zeros=True)
    if rule.score_name is None or known is Known.NOTHING:
        return _NOTHING
    if rule.granularity_name == "element":
        return Certainty(Known.COUNT, counts=True, zeros=True)
    if known is Known.COUNT:
        return _NOTHING
    # Channels of a parameter with a mask may hold different numbers of living entries.
    left = Known.NOTHING if masked else Known.COUNT
    return Certainty(left, counts=True, zeros=not masked)
