"""Patterns, rules, the Rewriter, passes and facts: all that an author of passes imports.

- `facts`: What analyses find out about a Program: frozen, and smaller than its parameters.
- `matching`: The search for a pattern's matches, over the orders and alternatives it leaves open.
- `passes`: What a pass is: a frozen dataclass, an Analysis or a Rewrite.
- `pattern`: Patterns over nodes: their syntax, parser and parts.
- `registry`: Passes by name, found through entry points; imported when used.
- `rewriter`: The only code that edits a Program; it counts and stamps the edits. Rewrite rules.
- `units`: What a score reads of a parameter, entries or channels, and which are alive.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support import lazy_names

if TYPE_CHECKING:
    from fxprune.errors import PassError
    from fxprune.program import ParamSite, Program, canonical_name, parameters_of
    from fxprune.rewrite.facts import (
        Cut,
        GivenMasks,
        Importance,
        Methods,
        NewMasks,
        Ranking,
        Scores,
        ScoreSource,
        Selection,
        indices_of,
        starts_of,
    )
    from fxprune.rewrite.matching import Search, candidates
    from fxprune.rewrite.passes import BOUND, Analysis, Facts, Pass, Rewrite
    from fxprune.rewrite.pattern import (
        Call,
        Match,
        Name,
        Pattern,
        Refusal,
        calls_around,
        capitals,
        inner_parts,
        operators,
        parse,
        parts_of,
    )
    from fxprune.rewrite.registry import (
        NO_DEFAULT,
        PassInfo,
        call_fault,
        create,
        describe,
        find,
        list_passes,
        name_fault,
        names,
        pass_fault,
        score_fault,
    )
    from fxprune.rewrite.rewriter import Rewriter, RewriteRule, bias_name, rule
    from fxprune.rewrite.units import (
        Entries,
        check_channels,
        entries_of,
        flat_part,
        living_channels,
        masked_value,
        raw_value,
        take_flat,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "facts": (
            "Cut GivenMasks Importance Methods NewMasks Ranking ScoreSource Scores Selection "
            "indices_of starts_of"
        ),
        "fxprune.errors": "PassError",
        "fxprune.program": "ParamSite Program canonical_name parameters_of",
        "matching": "Search candidates",
        "passes": "Analysis BOUND Facts Pass Rewrite",
        "pattern": (
            "Call Match Name Pattern Refusal calls_around capitals inner_parts operators parse "
            "parts_of"
        ),
        "registry": (
            "NO_DEFAULT PassInfo call_fault create describe find list_passes name_fault names "
            "pass_fault score_fault"
        ),
        "rewriter": "RewriteRule Rewriter bias_name rule",
        "units": (
            "Entries check_channels entries_of flat_part living_channels masked_value take_flat "
            "raw_value"
        ),
    },
)
