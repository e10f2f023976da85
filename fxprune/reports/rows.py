"""The rows of reports and plans: what is left of each parameter, and which rules made it so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from fxprune.errors import PassError
from fxprune.program import (
    STRICT,
    Count,
    Number,
    ParamRecord,
    Program,
    RuleRecord,
    count_true,
    parameters,
)
from fxprune.words import dtype_name

_Line = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$", max_length=4096)]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ParameterRow:
    """What is left of one parameter, or would be."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: _Line
    aliases: tuple[_Line, ...]  # the first name included
    shape: tuple[Count, ...]
    dtype: _Line  # as "float32"
    numel: Count
    zeros: Count  # the mask applied
    bytes: Count
    mask_bytes: Count = 0
    rules: tuple[_Line, ...] = ()  # that pruned it, in order

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


@dataclass(frozen=True)
class ParameterReport(ParameterRow):
    """What is left of one parameter, and what the last of its rules did: see `ParamRecord`."""

    units: Count | None = None
    alive: Count | None = None
    pruned: Count | None = None
    threshold: Number | None = None
    tied: Count = 0
    quota: Count = 0


@dataclass(frozen=True)
class PlannedParameter(ParameterRow):
    """One parameter, and what would come of it after all rules."""

    final_bytes: Count = field(kw_only=True)  # of parameter and mask after finalize
    # Whether `zeros` holds for every run; otherwise it is that of one random draw.
    exact: bool = field(kw_only=True)
    # SHA-256 of its values, an earlier mask applied, and of the mask that it would have; None for
    # none, or for one drawn at random.
    weights: _Hash = field(kw_only=True)
    mask: _Hash | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Totals:
    """Rows of parameters, in parameter order, and sums over them."""

    parameters: tuple[ParameterRow, ...]

    @property
    def zeros(self) -> int:
        """How many entries of all parameters are zero."""
        return sum(row.zeros for row in self.parameters)

    @property
    def total(self) -> int:
        """How many entries all parameters have."""
        return sum(row.numel for row in self.parameters)

    @property
    def bytes(self) -> int:
        """The size of all parameters in memory, without masks."""
        return sum(row.bytes for row in self.parameters)

    @property
    def mask_bytes(self) -> int:
        """The size of all masks in memory."""
        return sum(row.mask_bytes for row in self.parameters)


_ROW, _RECORD = TypeAdapter(ParameterReport), TypeAdapter(RuleRecord)
_LAST = ("units", "alive", "pruned", "threshold", "tied", "quota")
_FIGURES = {"zeros", "exact", "zeros_exact"}
_OF_PLANS: Any = {
    "parameters": {"__all__": {*_FIGURES, "makers"}},
    "layers": {"__all__": _FIGURES},
    "drawn": True,
    "exact": True,
}


def rows_of(program: Program, records: Iterable[RuleRecord]) -> Iterator[ParameterRow]:
    """Yield what is left of each parameter, in parameter order, and the rules of the records."""
    rules: dict[str, list[str]] = {}
    for record in records:
        for did in record.parameters:
            rules.setdefault(did.name, []).append(record.rule)
    masks = parameters.masks(program)
    for name, aliases in parameters.aliases(program).items():
        parameter, mask = parameters.parameter(program, name), masks.get(name)
        if parameter.is_meta:
            raise PassError(f"{name!r} is on the meta device, which holds no values to count")
        yield ParameterRow(
            name=name,
            aliases=aliases,
            shape=tuple(parameter.shape),
            dtype=dtype_name(parameter.dtype),
            numel=parameter.numel(),
            zeros=count_true(parameters.value(program, name) == 0),
            bytes=parameter.nbytes,
            mask_bytes=0 if mask is None else mask.nbytes,
            rules=tuple(dict.fromkeys(rules.get(name, ()))),
        )


def report_rows(program: Program) -> Iterator[ParameterReport]:
    """Yield the rows of a report; see `rows_of`."""
    records = program.captured.records
    last = {did.name: did for record in records for did in record.parameters}
    for row in rows_of(program, records):
        did = last.get(row.name, ParamRecord(row.name))
        yield ParameterReport(**vars(row), **{key: getattr(did, key) for key in _LAST})


def reasons(name: str, records: tuple[RuleRecord, ...]) -> str:
    """Say why each rule left a parameter as it is."""
    refusals = [(r.rule, why) for r in records for refused, why in r.refused if refused == name]
    if len(refusals) == 1:
        return refusals[0][1]
    return "; ".join(f"{rule}: {why}" for rule, why in refusals)


def share(part: int, whole: int) -> float:
    """Return a part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0


def row_data(row: ParameterReport) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    return {**_ROW.dump_python(row), "kept": row.kept, "share": row.share, "rule": row.rule}


def record_data(record: RuleRecord) -> dict[str, Any]:
    """Return what a rule did as JSON can hold it, without what only plans tell."""
    data = _RECORD.dump_python(record, exclude=_OF_PLANS)
    data["refused"] = [{"parameter": name, "reason": why} for name, why in record.refused]
    return data
