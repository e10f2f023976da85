"""The passes of this distribution by name; the entry point `fxprune.passes` leads here.

Names alone: fxprune imports a pass when a recipe uses it.
"""

from __future__ import annotations

PASSES: dict[str, str] = {
    "drop-repeats": "fxprune_example.repeats:DropRepeats",
    "relative": "fxprune_example.relative:ScoreRelative",
}
