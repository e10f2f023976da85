"""Reports: what is zero in a Program, which rule made it so, and how the rules went."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from rich.table import Table

from fxprune.channels import latency_of
from fxprune.errors import MissingParameterError
from fxprune.program import PassRecord, Program, RuleRecord, check_program, parameters
from fxprune.reports.rows import (
    ParameterReport,
    Totals,
    reasons,
    record_data,
    report_rows,
    row_data,
    share,
)
from fxprune.reports.shrink import ShrinkReport, shrink_reports
from fxprune.verification import Certificate
from fxprune.words import plain_table, rich_table

_HEADER = ("parameter", "zeros", "kept", "share", "bytes", "rule", "threshold", "ties")
_RIGHT = frozenset({"zeros", "kept", "share", "bytes", "threshold", "ties"})


@dataclass(frozen=True)
class Report(Totals):
    """What pruning did to a Program; `print` it, or take it as JSON or a rich table.

    Args:
        parameters: one row for each parameter, in parameter order.
        refused: (parameter, reason) for each parameter that no mask can stand for, or that rules
            looked at and none pruned.
        notes: what to know beside the numbers, as where capture changes the source.
        rules: what each rule did, in order.
        passes: what each pass that a recipe named did, in order.
        shrinks: what each shrink did, in order.
        certificate: what was checked, where a compile made the report.
    """

    parameters: tuple[ParameterReport, ...]
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    rules: tuple[RuleRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    shrinks: tuple[ShrinkReport, ...] = ()
    certificate: Certificate | None = None

    @property
    def pruned(self) -> tuple[ParameterReport, ...]:
        """The rows of the parameters that any rule pruned."""
        return tuple(row for row in self.parameters if row.rules)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time by pass, over all rules and passes."""
        times: dict[str, float] = {}
        for record in self.rules:
            for step, seconds in record.seconds.items():
                times[step] = times.get(step, 0.0) + seconds
        for done in self.passes:
            times[done.name] = times.get(done.name, 0.0) + done.seconds
        return times

    def sparsity(self, name: str | None = None) -> float:
        """Return the share of zeros of one parameter, or of all that a rule pruned.

        Args:
            name: any name of the parameter.

        Raises:
            MissingParameterError: there is no such parameter.
        """
        rows = self.pruned if name is None else (self._row(name),)
        return share(sum(row.zeros for row in rows), sum(row.numel for row in rows))

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
            "parameters": [row_data(row) for row in self.parameters],
            "refused": [{"parameter": name, "reason": reason} for name, reason in self.refused],
            "notes": self.notes,
            "rules": [record_data(record) for record in self.rules],
            "passes": [asdict(done) for done in self.passes],
            "shrinks": [done.to_data() for done in self.shrinks],
            "seconds": self.seconds,
            "certificate": None if self.certificate is None else self.certificate.to_data(),
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
        known = parameters.quote([row.name for row in self.parameters])
        raise MissingParameterError(f"the report has no parameter {name!r}; there are {known}")


def report(program: Program, *, before: Program | None = None) -> Report:
    """Report what is zero in a Program, what its rules did, and what a shrink cut.

    Args:
        program: not changed.
        before: of a shrunk Program, what it was made of: forwards of both are timed, at batch 1
            and 8.

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
    check_program(program, "report")
    records = program.captured.records
    rows = tuple(report_rows(program))
    unpruned = [row.name for row in rows if not row.rules]
    no_mask = program.captured.refused
    refused = tuple((n, why) for n in unpruned if (why := no_mask.get(n) or reasons(n, records)))
    timed = () if before is None else (latency_of(program, before, batch=n) for n in (1, 8))
    latency = tuple(each for each in timed if each is not None)
    shrinks = shrink_reports(program, latency)
    return Report(rows, refused, program.captured.notes, records, program.captured.passes, shrinks)


def _cells(report: Report) -> Iterator[tuple[str, ...]]:
    for row in report.parameters:
        threshold = "" if row.threshold is None else f"{row.threshold:.3g}"
        ties = f"{row.quota} of {row.tied}" if row.tied else ""
        numbers = (f"{row.zeros:,}", f"{row.kept:,}", f"{row.share:.2%}", f"{row.bytes:,}")
        yield (row.name, *numbers, row.rule or "", threshold, ties)
    kept, part = report.total - report.zeros, share(report.zeros, report.total)
    numbers = (f"{report.zeros:,}", f"{kept:,}", f"{part:.2%}", f"{report.bytes:,}")
    yield ("total", *numbers, *[""] * 3)
