"""Reports: what is zero in a Program, which rule made it so, and how the rules went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fxprune import tensors
from fxprune.errors import MissingParameterError, PassError, PassTypeError
from fxprune.facts import ParamRecord, RuleRecord
from fxprune.program import Program
from fxprune.shards import count_of
from fxprune.tables import plain_table, rich_table

__all__ = ["ParameterReport", "Report", "report"]

_HEADER = ("parameter", "zeros", "kept", "share", "bytes", "rule", "threshold", "ties")
_RIGHT = frozenset({"zeros", "kept", "share", "bytes", "threshold", "ties"})


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
        return _share(self.zeros, self.numel)

    @property
    def rule(self) -> str | None:
        """The name of the last rule that pruned it; None where none did."""
        return self.rules[-1] if self.rules else None


@dataclass(frozen=True)
class Report:
    """What pruning did to a Program; `print` it, or take it as JSON or a rich table.

    Args:
        parameters: one row for each parameter, in parameter order.
        refused: (parameter, reason) for each parameter that rules looked at and none pruned.
        notes: what to know beside the numbers, as where capture changes the source.
        rules: what each rule did, in order.
    """

    parameters: tuple[ParameterReport, ...]
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    rules: tuple[RuleRecord, ...] = ()

    @property
    def pruned(self) -> tuple[ParameterReport, ...]:
        """The rows of the parameters that any rule pruned."""
        return tuple(row for row in self.parameters if row.rules)

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

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time by pass, over all rules."""
        times: dict[str, float] = {}
        for record in self.rules:
            for step, seconds in record.seconds.items():
                times[step] = times.get(step, 0.0) + seconds
        return times

    def sparsity(self, name: str | None = None) -> float:
        """Return the share of zeros of one parameter, or of all that a rule pruned.

        Args:
            name: any name of the parameter.

        Raises:
            MissingParameterError: there is no such parameter.
        """
        rows = self.pruned if name is None else (self._row(name),)
        return _share(sum(row.zeros for row in rows), sum(row.numel for row in rows))

    def lines(self, name: str) -> str:
        """Return the two lines that PyTorch's pruning tutorial prints.

        Args:
            name: any name of the parameter of the first line.

        Raises:
            MissingParameterError: there is no such parameter.

        Example:
            >>> row = ParameterReport("conv1.weight", (), (75,), "float32", 75, 4, 300)
            >>> print(Report((row,)).lines("conv1.weight"))
            Sparsity in conv1.weight: 5.33%
            Global sparsity: 0.00%
        """
        here, everywhere = self.sparsity(name), self.sparsity()
        return f"Sparsity in {name}: {here:.2%}\nGlobal sparsity: {everywhere:.2%}"

    def to_json(self) -> str:
        """Return all of it as JSON with its keys in a fixed order; infinity and NaN are strings."""
        data = {
            "zeros": self.zeros,
            "total": self.total,
            "bytes": self.bytes,
            "mask_bytes": self.mask_bytes,
            "sparsity": self.sparsity(),
            "parameters": [_row_data(row) for row in self.parameters],
            "refused": [{"parameter": name, "reason": reason} for name, reason in self.refused],
            "notes": self.notes,
            "rules": [_record_data(record) for record in self.rules],
            "seconds": self.seconds,
        }
        return json.dumps(data, indent=2, allow_nan=False)

    def table(self) -> Table:
        """Return it as a table for a rich console.

        Rule, threshold and ties are those of the last rule that pruned a parameter; "1 of 3" says
        that 3 units were at the threshold and 1 of them was pruned.
        """
        return rich_table(_HEADER, list(_cells(self)), _RIGHT, footer=True)

    def __str__(self) -> str:
        return plain_table(_HEADER, list(_cells(self)), _RIGHT)

    def _row(self, name: str) -> ParameterReport:
        for row in self.parameters:
            if name == row.name or name in row.aliases:
                return row
        known = tensors.quoted([row.name for row in self.parameters])
        raise MissingParameterError(f"the report has no parameter {name!r}; there are {known}")


def report(program: Program) -> Report:
    """Report what is zero in a Program, masked or finalized, and what its rules did.

    Args:
        program: not changed. Where its parameters are spread over processes (DTensor, FSDP2), all
            of these make this call, and all get what one process would.

    Raises:
        PassTypeError: it is no Program.
        PassError: its parameters are on the meta device, where they have no values.

    Example:
        >>> import fxprune, torch
        >>> program = fxprune.capture(torch.nn.Linear(4, 2), (torch.zeros(2, 4),))
        >>> rule = {"select": "weight", "method": "l1_unstructured", "amount": 0.5}
        >>> print(report(fxprune.prune(program, {"rule": [rule]})).lines("weight"))
        Sparsity in weight: 50.00%
        Global sparsity: 50.00%
    """
    if not isinstance(program, Program):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(
            f"report takes a Program, not {type(program).__name__}; call fxprune.capture first"
        )
    records = program.captured.records
    rows = tuple(
        _row_of(program, name, aliases, records)
        for name, aliases in tensors.aliases(program).items()
    )
    spared = [row.name for row in rows if not row.rules]
    refused = tuple((name, why) for name in spared if (why := _reasons(name, records)))
    return Report(rows, refused, program.captured.notes, records)


def _row_of(
    program: Program, name: str, aliases: tuple[str, ...], records: tuple[RuleRecord, ...]
) -> ParameterReport:
    parameter, mask = tensors.parameter(program, name), tensors.masks(program).get(name)
    if parameter.is_meta:
        raise PassError(f"{name!r} is on the meta device, which holds no values to report on")
    did = [(r.rule, p) for r in records for p in r.parameters if p.name == name]
    last = did[-1][1] if did else ParamRecord(name)
    return ParameterReport(
        name=name,
        aliases=aliases,
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        numel=parameter.numel(),
        zeros=count_of(tensors.value(program, name) == 0),
        bytes=parameter.numel() * parameter.element_size(),
        mask_bytes=0 if mask is None else mask.numel() * mask.element_size(),
        rules=tuple(dict.fromkeys(rule for rule, _ in did)),
        units=last.units,
        alive=last.alive,
        pruned=last.pruned,
        threshold=last.threshold,
        tied=last.tied,
        quota=last.quota,
    )


def _reasons(name: str, records: tuple[RuleRecord, ...]) -> str:
    """Say why each rule left a parameter as it is."""
    found = [(r.rule, why) for r in records for refused, why in r.refused if refused == name]
    if len(found) == 1:
        return found[0][1]
    return "; ".join(f"{rule}: {why}" for rule, why in found)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _row_data(row: ParameterReport) -> dict[str, Any]:
    more = {"kept": row.kept, "share": row.share, "rule": row.rule}
    return {**asdict(row), **more, "threshold": _number(row.threshold)}


def _record_data(record: RuleRecord) -> dict[str, Any]:
    data = asdict(record)
    for parameter in data["parameters"]:
        parameter["threshold"] = _number(parameter["threshold"])
    data["refused"] = [{"parameter": name, "reason": why} for name, why in record.refused]
    return data


def _number(value: float | None) -> float | str | None:
    """Return a number as JSON can hold it."""
    return value if value is None or math.isfinite(value) else str(value)


def _cells(report: Report) -> Iterator[tuple[str, ...]]:
    for row in report.parameters:
        threshold = "" if row.threshold is None else f"{row.threshold:.3g}"
        ties = f"{row.quota} of {row.tied}" if row.tied else ""
        numbers = (f"{row.zeros:,}", f"{row.kept:,}", f"{row.share:.2%}", f"{row.bytes:,}")
        yield (row.name, *numbers, row.rule or "", threshold, ties)
    kept, share = report.total - report.zeros, _share(report.zeros, report.total)
    yield (
        "total",
        f"{report.zeros:,}",
        f"{kept:,}",
        f"{share:.2%}",
        f"{report.bytes:,}",
        *[""] * 3,
    )
