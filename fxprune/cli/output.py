"""What commands print: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.status import Status
from rich.text import Text

from fxprune.errors import FxpruneError, InvariantError, StateError
from fxprune.words import plain, plain_table, rich_table

if TYPE_CHECKING:  # it loads torch
    from fxprune.reports import Report

_FAILED, _AT_FAULT, _INTERRUPTED = 1, 2, 130


@contextlib.contextmanager
def reported() -> Generator[None]:
    """Turn errors into one message on stderr and an exit code, without a traceback.

    1: a check failed; 2: the input is at fault; 130: interrupted, as the shell counts signals.
    What models and factories print goes to stderr, so that stdout holds results alone.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except FxpruneError as error:
        failed = isinstance(error, InvariantError) and not isinstance(error, StateError)
        raise _exit(str(error), _FAILED if failed else _AT_FAULT) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _exit(f"{error.filename}: {error.strerror or error}", _AT_FAULT) from error
    except KeyboardInterrupt as error:
        raise _exit("interrupted", _INTERRUPTED) from error


def _exit(message: str, code: int) -> typer.Exit:
    lines = [plain(line) for line in message.splitlines()]
    typer.echo("\n".join(["Error: " + "".join(lines[:1]), *lines[1:]]), err=True)
    return typer.Exit(code)


class Progress:
    """The steps of a run: shown on a terminal while they run, and timed.

    Use it as a context, and call it with each step's name as the step begins.
    """

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._status: Status | None = console.status("") if console.is_terminal else None
        self._began: list[tuple[str, float]] = []

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._began.append(("", time.perf_counter()))
        if self._status is not None:
            self._status.stop()

    def __call__(self, step: str) -> None:
        """Say that a step begins, and so the one before has ended."""
        self._began.append((step, time.perf_counter()))
        if self._status is not None:
            self._status.update(Text(step))

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Take the step off the terminal while results are printed there."""
        if self._status is None:
            yield
            return
        self._status.stop()
        yield
        self._status.start()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by step, in order."""
        times: dict[str, float] = {}
        ends = [began for _, began in self._began[1:]]
        for (step, began), end in zip(self._began, ends, strict=False):
            times[step] = times.get(step, 0.0) + end - began
        return times


class Bar:
    """A bar on stderr for the step that runs; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        console = Console(file=sys.stderr)
        hidden = not console.is_terminal
        self._bars = Bars(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
        )
        self._task = self._bars.add_task("", total=None)
        self._step = ""

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show how far a step has come."""
        if step != self._step:
            self._step = step
            self._bars.reset(self._task, description=plain(step))
        self._bars.update(self._task, completed=done, total=total)


class Page:
    """Results on stdout: tables on a terminal, aligned text in a file or a pipe; JSON."""

    def __init__(self, progress: Progress | None = None, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._progress = progress
        self._quiet = quiet

    def json(self, text: str) -> None:
        """Print JSON, whole lines."""
        with self._beside_progress():
            self._console.file.write(f"{text}\n")

    def text(self, text: str = "") -> None:
        """Print lines as they are."""
        self._print(Text(text))

    def heading(self, text: str) -> None:
        """Print a heading after an empty line."""
        self._print(Text(f"\n{text}", style="bold"))

    def table(self, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Print rows under titles; see `fxprune.words.plain_table`."""
        if self._console.is_terminal:
            self._print(rich_table(header, rows))
        else:
            self.text(plain_table(header, rows))

    def show(self, table: RenderableType, text: str) -> None:
        """Print a table on a terminal, and the same as text in a file or a pipe."""
        if self._console.is_terminal:
            self._print(table)
        else:
            self.text(text)

    def report(self, report: Report) -> None:
        """Print a report: its table, the share of zeros, what was left and what to know."""
        if self._console.is_terminal:
            self._print(report.table())
        else:
            self.text(str(report))
        if report.pruned:
            self.text(f"\n{report.lines(report.pruned[0].name)}")
        for shrunk in report.shrinks:
            self.heading("shrink")
            self.text(str(shrunk))
        for done in report.passes:
            self.text(f"pass {done.name}: {done.edits} edits, promises: {done.promise}")
        for note in report.notes:
            self.text(f"note: {note}")

    def files(self, paths: Sequence[Path]) -> None:
        """Print what was written."""
        if paths:
            self.text()
        for path in paths:
            self.text(f"wrote {path} ({path.stat().st_size:,} bytes)")

    def times(self, seconds: dict[str, float]) -> None:
        """Print the time of each step; steps named "rule: pass" stand in their rule's line."""
        groups: dict[str, list[tuple[str, float]]] = {}
        for step, time_of_step in seconds.items():
            head, _, tail = step.rpartition(": ")
            groups.setdefault(head or tail, []).append((tail if head else "", time_of_step))
        rows = [
            (
                head,
                f"{sum(t for _, t in steps):.3f} s",
                ", ".join(f"{n} {t:.3f}" for n, t in steps if n),
            )
            for head, steps in groups.items()
        ]
        self.text(plain_table(("step", "time", ""), rows, frozenset({"time"})))

    def _print(self, what: RenderableType) -> None:
        if self._quiet:
            return
        with self._beside_progress():
            # The terminal wraps long lines; a file keeps them whole.
            self._console.print(what, soft_wrap=isinstance(what, Text))

    def _beside_progress(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._progress is None else self._progress.paused()
