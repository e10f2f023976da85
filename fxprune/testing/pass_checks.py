"""`check_pass`: a pass is put to every test on drawn networks; what fails is made simpler."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from fxprune.errors import FxpruneError, InvariantError
from fxprune.program import Program
from fxprune.rewrite import Pass, Rewrite, Scores
from fxprune.testing.architecture import Activation, Arch, ArchLayer, Dropout, Linear, Norm, build
from fxprune.testing.assert_pass import (
    GivenFacts,
    assert_frozen,
    assert_idempotent,
    assert_promise,
    assert_pure,
    assert_transactional,
    copy_and_run,
    instance_of,
)
from fxprune.testing.assert_scores import assert_scores
from fxprune.testing.comparing import DifferenceError
from fxprune.testing.drawing import DrawnProgram, programs_as_data
from fxprune.testing.searching import simplest_failure


def simplest(case: DrawnProgram, fails: Callable[[DrawnProgram], bool]) -> DrawnProgram:
    """Return a simpler Program that still `fails`: fewer, plainer, narrower layers, no masks."""
    reduced = True
    while reduced:
        reduced = False
        for simpler in _simpler(case):
            if _runs(simpler.arch) and fails(simpler):
                case, reduced = simpler, True
                break
    return case


def _simpler(case: DrawnProgram) -> Iterator[DrawnProgram]:
    """Yield simpler Programs, the simplest first; masks stay only where nothing else changes."""
    if case.recipe is not None:
        yield DrawnProgram(case.arch)
        for rule in case.recipe.rules if len(case.recipe.rules) > 1 else ():
            yield DrawnProgram(case.arch, case.recipe.model_copy(update={"rules": (rule,)}))
    for arch in _simpler_archs(case.arch):
        yield DrawnProgram(arch, case.recipe)


def _simpler_archs(arch: Arch) -> Iterator[Arch]:
    layers = arch.layers
    if len(layers) > 1:
        for at in range(len(layers)):
            yield dataclasses.replace(arch, layers=(*layers[:at], *layers[at + 1 :]))
    if arch.shape != "features":
        yield dataclasses.replace(arch, shape="features", tied=False)
    for option in dataclasses.fields(arch)[3:]:
        if getattr(arch, option.name) != option.default:
            yield dataclasses.replace(arch, **{option.name: option.default})
    if arch.width > 1:
        yield dataclasses.replace(arch, width=1)
    for at, layer in enumerate(layers):
        for simpler in _simpler_layers(layer):
            yield dataclasses.replace(arch, layers=(*layers[:at], simpler, *layers[at + 1 :]))


def _simpler_layers(layer: ArchLayer) -> Iterator[ArchLayer]:
    if not isinstance(layer, Linear | Activation | Norm | Dropout):
        yield Linear(1)
    inner = getattr(layer, "inner", None)
    if isinstance(inner, ArchLayer):
        yield inner
        for simpler in _simpler_layers(inner):
            yield _with(layer, "inner", simpler)
    for option in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        value = getattr(layer, option.name)
        least = option.default
        if option.default is dataclasses.MISSING:
            least = 1 if isinstance(value, int) else value
        if value != least:
            yield _with(layer, option.name, least)


def _with(layer: Any, name: str, value: Any) -> Any:
    return dataclasses.replace(layer, **{name: value})


def _runs(arch: Arch) -> bool:
    """Tell whether a network can be built and run: layers may not fit each other any more."""
    try:
        model, args, kwargs = build(arch)
        model(*args, **kwargs)
    except Exception:  # noqa: BLE001 - torch raises whatever it likes
        return False
    return True


@dataclass(frozen=True)
class Checked:
    """What `check_pass` or `check_model` checked.

    Args:
        subject: the pass or the model.
        checks: how many cases each check held in, by its name.
        refused: why cases were refused, and how many of them.
        edits: how many edits a pass made over all cases.

    Example:
        >>> print(Checked("drop-repeats", {"promise": 30}, {"it has no relu": 2}, edits=9))
        drop-repeats: 30 checks, 9 edits
          promise: 30 cases
          refused 2 cases: it has no relu
    """

    subject: str
    checks: dict[str, int]
    refused: dict[str, int]
    edits: int = 0

    @property
    def cases(self) -> int:
        """How many checks held, over all cases."""
        return sum(self.checks.values())

    def __str__(self) -> str:
        edits = f", {self.edits} edits" if self.edits else ""
        lines = [f"{self.subject}: {self.cases} checks{edits}"]
        lines += [f"  {name}: {count} {_cases(count)}" for name, count in self.checks.items()]
        lines += [f"  refused {n} {_cases(n)}: {why}" for why, n in self.refused.items()]
        return "\n".join(lines)


@dataclass
class CheckCounts:
    """Counts what is checked, while it is."""

    subject: str
    checks: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    edits: int = 0

    def result(self) -> Checked:
        """Return what was counted."""
        return Checked(self.subject, dict(self.checks), dict(self.refused), self.edits)


def _cases(count: int) -> str:
    return "case" if count == 1 else "cases"


Check = Callable[[Program], None]


def check_pass(
    step: Pass | type[Pass],
    *,
    networks: st.SearchStrategy[Arch] | None = None,
    given: GivenFacts = (),
    random: bool = False,
    torch_method: str | None = None,
    max_examples: int = 40,
    seed: int = 0,
) -> Checked:
    """Put a pass to every test, on drawn networks, masked and plain.

    It keeps its promise and the Program's invariants, does nothing the second time, leaves a
    Program as it was when it fails at any of its edits, changes neither the caller's tensors nor
    the facts it was given, does the same each time, and draws from no global generator. Scores are
    held to the contract of a `ScoreSource`, and to torch's masks where `torch_method` is given.

    Args:
        step: a pass, or its class where all options have defaults.
        networks: what to draw from; `architectures()` by default, half of them with
            runs of pointwise functions. A rewrite has to edit some.
        given: facts that it needs beside a Selection of all parameters; or a function that finds
            them of a Program.
        random: whether it may draw from the global generators.
        torch_method: of a score: the method of torch.nn.utils.prune whose masks it leads to;
            by default what the pass has as `torch_method`.
        max_examples: how many Programs to draw.
        seed: of the draw.

    Returns:
        What was checked, how often, and what was refused.

    Raises:
        DifferenceError: an AssertionError with the simplest network found, as a script that runs.
        PassError: the pass cannot be made, or needs facts that are not given.

    Example:
        >>> from fxprune.rewrite import find
        >>> print(check_pass(find("finalize"), max_examples=5).subject)
        finalize
    """
    step = instance_of(step)
    method = torch_method or getattr(step, "torch_method", None)
    battery = _Battery(step, given, random, method, CheckCounts(step.name))
    values = programs_as_data(networks=networks)
    failure = simplest_failure(
        values, battery.check, max_examples=max_examples, start=seed, shrink=False
    )
    if failure is not None:
        raise battery.error_of(failure.value) from failure.error
    if isinstance(step, Rewrite) and battery.counts.edits == 0:
        why = "".join(f"\n  refused: {reason}" for reason in battery.counts.refused)
        raise DifferenceError(
            f"{step.name} edited none of {max_examples} drawn networks, so that nothing was "
            f"checked; give networks= that it edits, or a larger max_examples={why}"
        )
    return battery.counts.result()


@dataclass(frozen=True)
class _Battery:
    step: Pass
    given: GivenFacts
    random: bool
    torch_method: str | None
    counts: CheckCounts

    def checks(self) -> Iterator[tuple[str, str, Check]]:
        """Yield name, call as code, and function of each check."""
        step, given = self.step, self.given

        def check(
            name: str, function: Callable[..., None], **options: Any
        ) -> tuple[str, str, Check]:
            shown = "".join(f", {key}={value!r}" for key, value in options.items())
            shown += "" if given == () else ", given=given"
            call = f"fxprune.testing.{function.__name__}(program, {_code(step)}{shown})"
            return name, call, lambda p: function(p, step, given=given, **options)

        yield check("promise", assert_promise)
        yield check("pure", assert_pure, **({"random": True} if self.random else {}))
        yield check("frozen", assert_frozen)
        if isinstance(step, Rewrite):
            yield check("idempotent", assert_idempotent)
            yield check("transactional", assert_transactional)
        if Scores in step.gives and Scores not in step.needs:
            method = {} if self.torch_method is None else {"torch_method": self.torch_method}
            yield check("scores", assert_scores, **method)

    def check(self, case: DrawnProgram) -> None:
        """Run all checks on one Program."""
        program = case.program()
        try:
            self.counts.edits += copy_and_run(program, self.step, self.given).trace.edits
        except InvariantError:
            pass  # a broken promise: the check of it says more
        except FxpruneError as error:
            self.counts.refused[str(error)] += 1
            return
        for name, _, check in self.checks():
            check(program)
            self.counts.checks[name] += 1

    def error_of(self, case: DrawnProgram) -> DifferenceError:
        """Return the error that tells what fails, with the script that shows it."""
        first = self.first_failure(case) or (
            "promise",
            "",
            DifferenceError("it fails now and then"),
        )
        alike = (first[0], type(first[2]))
        case = simplest(case, lambda other: self.is_alike(other, alike))
        name, call, error = self.first_failure(case) or first
        shown = "" if isinstance(error, DifferenceError) else f"{type(error).__name__}: "
        head = f"the pass {self.step.name!r} fails the check {name!r}: {shown}{error}"
        imports = f"import fxprune\nimport fxprune.testing\n{_import(self.step)}\n"
        script = case.code().replace("import fxprune\n", imports, 1)
        return DifferenceError(
            f"{head}\n\nThe simplest network that shows it:\n\n{script}\n{call}\n"
        )

    def first_failure(self, case: DrawnProgram) -> tuple[str, str, Exception] | None:
        """Return name, call and error of the first check that fails on a Program."""
        program = case.program()
        if self.is_refused(program):
            return None
        for name, call, check in self.checks():
            try:
                check(program)
            except Exception as error:  # noqa: BLE001 - a crash is a failure like any other
                return name, call, error
        return None

    def is_refused(self, program: Program) -> bool:
        """Tell whether the pass does not take a Program."""
        try:
            copy_and_run(program, self.step, self.given)
        except InvariantError:
            return False
        except FxpruneError:
            return True
        except Exception:  # noqa: BLE001 - a crash is a failure of the first check
            return False
        return False

    def is_alike(self, case: DrawnProgram, alike: tuple[str, type[Exception]]) -> bool:
        """Tell whether the same check fails on another Program with the same kind of error."""
        try:
            failure = self.first_failure(case)
        except FxpruneError:  # its recipe does not fit the network any more
            return False
        return failure is not None and (failure[0], type(failure[2])) == alike


def _code(step: Pass) -> str:
    return repr(step).rpartition("<locals>.")[2]


def _import(step: Pass) -> str:
    kind: Any = type(step)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return f"# {kind.__name__} is your pass, {kind.__module__}.{kind.__qualname__}"
    return f"from {kind.__module__} import {kind.__qualname__.partition('.')[0]}"
