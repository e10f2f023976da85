"""The rows of a report: what is left of each parameter, and which rule made it so."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from fxprune import tensors
from fxprune.errors import PassError
from fxprune.facts import ParamRecord, RuleRecord
from fxprune.program import Program
from fxprune.shards import count_of
from fxprune.wording import dtype_name

__all__ = ["ParameterReport", "reasons", "record_data", "row_data", "row_of", "share"]

_RECORD = TypeAdapter(RuleRecord)
_FIGURES = {"zeros", "exact", "zeros_exact"}
_OF_PLANS: Any = {
    "parameters": {"__all__": {*_FIGURES, "makers"}},
    "layers": {"__all__": _FIGURES},
    "drawn": True,
    "exact": True,
}


@dataclass(frozen=True)
class ParameterReport:
    """What is left of one parameter.

    Args:
        name: its first name.
        aliases: all its names, the first included.
        shape: its shape.
        dtype: its dtype, as "float32".
        numel: how many entries it has.
        zeros: how many of these are zero, the mask applied.
        bytes: the size of the parameter in memory.
        mask_bytes: the size of its mask; 0 where it has none.
        rules: the names of the rules that pruned it, in order.
        units: how many units, entries or channels, the last of these rules ranked.
        alive: how many of these were alive before.
        pruned: how many of these it pruned; None where a given mask decided.
        threshold: the largest score that it pruned.
        tied: how many units had that score.
        quota: how many of these it pruned.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    numel: int
    zeros: int
    bytes: int
    mask_bytes: int = 0
    rules: tuple[str, ...] = ()
    units: int | None = None
    alive: int | None = None
    pruned: int | None = None
    threshold: float | None = None
    tied: int = 0
    quota: int = 0

    @property
    def kept(self) -> int:
        """How many entries are not zero."""
        return self.numel - self.zeros

    @property
    def share(self) -> float:
        """The share of entries that are zero."""
        return share(self.zeros, self.numel)

    @property
    def rule(self) -> str | None:
        """The name of the last rule that pruned it; None where none did."""
        return self.rules[-1] if self.rules else None


def row_of(
    program: Program, name: str, aliases: tuple[str, ...], records: tuple[RuleRecord, ...]
) -> ParameterReport:
    """Return the row of one parameter."""
    parameter, mask = tensors.parameter(program, name), tensors.masks(program).get(name)
    if parameter.is_meta:
        raise PassError(f"{name!r} is on the meta device, which holds no values to report on")
    did = [(r.rule, p) for r in records for p in r.parameters if p.name == name]
    last = did[-1][1] if did else ParamRecord(name)
    return ParameterReport(
        name=name,
        aliases=aliases,
        shape=tuple(parameter.shape),
        dtype=dtype_name(parameter.dtype),
        numel=parameter.numel(),
        zeros=count_of(tensors.value(program, name) == 0),
        bytes=parameter.nbytes,
        mask_bytes=0 if mask is None else mask.nbytes,
        rules=tuple(dict.fromkeys(rule for rule, _ in did)),
        units=last.units,
        alive=last.alive,
        pruned=last.pruned,
        threshold=last.threshold,
        tied=last.tied,
        quota=last.quota,
    )


def reasons(name: str, records: tuple[RuleRecord, ...]) -> str:
    """Say why each rule left a parameter as it is."""
    found = [(r.rule, why) for r in records for refused, why in r.refused if refused == name]
    if len(found) == 1:
        return found[0][1]
    return "; ".join(f"{rule}: {why}" for rule, why in found)


def share(part: int, whole: int) -> float:
    """Return a part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0


def row_data(row: ParameterReport) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    more = {"kept": row.kept, "share": row.share, "rule": row.rule}
    return {**asdict(row), **more, "threshold": _number(row.threshold)}


def record_data(record: RuleRecord) -> dict[str, Any]:
    """Return what a rule did as JSON can hold it, without what only plans tell."""
    data = _RECORD.dump_python(record, exclude=_OF_PLANS)
    data["refused"] = [{"parameter": name, "reason": why} for name, why in record.refused]
    return data


def _number(value: float | None) -> float | str | None:
    """Return a number as JSON can hold it."""
    return value if value is None or math.isfinite(value) else str(value)
