"""The rows of a plan: what each rule would do to each parameter, and what would come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field

__all__ = ["PlannedCut", "PlannedParameter", "PlannedRule"]

# How the rows are read from a file: no unknown keys, no conversions.
_CONFIG = ConfigDict(extra="forbid", strict=True)
_NUMBERS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


def _number(value: object) -> object:
    """Return the number that JSON cannot hold and a file has as text."""
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$", max_length=4096)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Number = Annotated[float, BeforeValidator(_number)]


@dataclass(frozen=True)
class PlannedCut:
    """What one rule would do to one parameter.

    Args:
        name: the parameter's first name.
        units: how many units it has: entries, or channels.
        alive: how many of these are alive when the rule's turn comes.
        pruned: how many of these the rule would prune.
        zeros: how many entries of its mask become zero by that.
        threshold: the largest score that would be pruned; None where nothing is ranked or pruned,
            or scores are drawn at random.
        exact: whether `alive` and `pruned` hold for every run; otherwise they are those of one
            random draw.
        zeros_exact: whether `zeros` does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: _Text
    units: _Count
    alive: _Count
    pruned: _Count
    zeros: _Count
    threshold: _Number | None = None
    exact: bool = True
    zeros_exact: bool = True


@dataclass(frozen=True)
class PlannedRule:
    """What one rule would do, or the rules of one group.

    Args:
        name: the rule's name; those of a group joined by "+".
        method: its method, in the words of the recipe.
        amount: share or count, as asked.
        scope: "local" or "global".
        parameters: one row for each parameter that it selects, in parameter order.
        drawn: whether it draws from torch's global generator, so that each run prunes others.
        exact: whether the number pruned, summed over its parameters, holds for every run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: _Text
    method: _Text
    amount: _Count | Annotated[float, Field(ge=0.0, le=1.0)] | None
    scope: _Text
    parameters: tuple[PlannedCut, ...]
    drawn: bool = False
    exact: bool = True

    @property
    def units(self) -> int:
        """How many units its parameters have."""
        return sum(cut.units for cut in self.parameters)

    @property
    def alive(self) -> int:
        """How many of these are alive when its turn comes."""
        return sum(cut.alive for cut in self.parameters)

    @property
    def pruned(self) -> int:
        """How many of these it would prune."""
        return sum(cut.pruned for cut in self.parameters)

    @property
    def zeros(self) -> int:
        """How many entries of masks become zero by that."""
        return sum(cut.zeros for cut in self.parameters)


@dataclass(frozen=True)
class PlannedParameter:
    """One parameter, and what would come of it after all rules.

    Args:
        name: its first name.
        aliases: all its names, the first included.
        shape: its shape.
        dtype: its dtype, as "float32".
        numel: how many entries it has.
        zeros: how many of these would be zero, the mask applied.
        bytes: the size of the parameter in memory.
        mask_bytes: the size that its mask would have; 0 for none.
        final_bytes: the size of both after finalize.
        rules: the names of the rules that select it, in order.
        exact: whether `zeros` holds for every run; otherwise it is that of one random draw.
        weights: SHA-256 of its values, an earlier mask included, as they are before.
        mask: SHA-256 of the mask that it would have; None for none, or for one drawn at random.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: _Text
    aliases: tuple[_Text, ...]
    shape: tuple[_Count, ...]
    dtype: _Text
    numel: _Count
    zeros: _Count
    bytes: _Count
    mask_bytes: _Count
    final_bytes: _Count
    rules: tuple[_Text, ...]
    exact: bool
    weights: _Hash
    mask: _Hash | None = None

    @property
    def kept(self) -> int:
        """How many entries would not be zero."""
        return self.numel - self.zeros

    @property
    def share(self) -> float:
        """The share of entries that would be zero."""
        return self.zeros / self.numel if self.numel else 0.0
