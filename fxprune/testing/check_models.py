"""`check_model`: a model is put to every test, by drawn recipes of every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.compiler import capture, prune
from fxprune.errors import FxpruneError, InvariantError
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.testing.assertions import assert_same
from fxprune.testing.calls import Call
from fxprune.testing.checked import Checked, Tally
from fxprune.testing.comparing import DifferenceError
from fxprune.testing.drawn_calls import pruning_sequences
from fxprune.testing.drawn_recipes import METHODS, prunable, recipes
from fxprune.testing.model_checks import CHECKS, COUPLED, EXPORTS, ModelCheck, Subject
from fxprune.testing.parity import assert_parity
from fxprune.testing.remembering import Memory
from fxprune.testing.searching import Found, simplest_failure
from fxprune.testing.writing_code import recipe_code, toml_of

__all__ = ["check_model"]

_STRUCTURED = ("ln_structured", "random_structured")
_Plan = tuple[st.SearchStrategy[Recipe], Sequence[ModelCheck]]
_PARTS = len(METHODS) + 2  # and rules with coupled = true, and calls of fxprune.functional


def check_model(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    batch: Any = 0,
    max_examples: int = 14,
    seed: int = 0,
) -> Checked:
    """Put a model to every test: capture it, prune it by drawn recipes of every method.

    The capture equals the model in both modes and at other batches; masks, training and `remove`
    equal torch.nn.utils.prune's; the finalized Program equals the masked one, and so do its deep
    copy, its pickle and its `.fxp` file; what fails changes nothing; shrunk channels are close in
    float64; the .pt2, .safetensors and .py files equal the Program. What fxprune refuses is no
    failure: it is reported.

    Args:
        model: yours; not changed, as is the global generator.
        inputs: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        batch: the batch dimension, as `fxprune.capture` takes it.
        max_examples: how many recipes and sequences of calls to draw, over all methods; of coupled
            recipes three times their share.
        seed: of the draw.

    Returns:
        What was checked, how often, and what was refused.

    Raises:
        DifferenceError: an AssertionError with the simplest recipe found, as TOML and as code.
        CaptureError: the model cannot be captured.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> checked = check_model(model, torch.randn(3, 3), max_examples=1)
        >>> checked.subject, checked.checks["capture"], checked.checks["finalize"] > 0
        ('Sequential', 1, True)
    """
    args, kwargs = _split(inputs)
    memory, tally = Memory(model), Tally(type(model).__name__)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = capture(model, args, kwargs, batch=batch)
        assert_same(program, model, args, kwargs, trials=2)
        tally.checks["capture"] += 1
        subject = Subject(model, program, args, kwargs)
        if prunable(program):
            _check_drawn(subject, tally, max(1, max_examples // _PARTS), seed)
    told = memory.difference(model)
    if told is not None:
        raise DifferenceError(f"the checks changed the model: {told}")
    tally.checks["unchanged"] += 1
    return tally.checked()


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _check_drawn(subject: Subject, tally: Tally, each: int, seed: int) -> None:
    """Check each method, coupled channels, an export, and calls of fxprune.functional."""
    program = subject.program
    matrices = any(len(site.shape) > 1 for site in prunable(program))
    methods = [m for m in METHODS if matrices or m not in _STRUCTURED]
    plans: list[_Plan] = [(recipes(program, methods=[m], max_rules=2), CHECKS) for m in methods]
    if matrices:
        coupled = recipes(program, methods=_STRUCTURED, max_rules=1, coupled=True)
        plans.append((coupled, COUPLED))
    for drawn, checks in plans:
        # A cut has more ways to be wrong than a mask: a recipe reaches few of a model's channels.
        count = 3 * each if checks is COUPLED else each
        _hold(_run(subject, tally, drawn, checks, count, seed))
    _hold(_run(subject, tally, recipes(program, max_rules=1), EXPORTS, 1, seed))
    _hold_calls(subject, tally, each, seed)


def _run(
    subject: Subject,
    tally: Tally,
    drawn: st.SearchStrategy[Recipe],
    checks: Sequence[ModelCheck],
    count: int,
    seed: int,
) -> tuple[Found[Recipe] | None, ModelCheck | None]:
    """Look for a recipe on which a check fails; return the simplest, and that check."""
    at: list[ModelCheck] = []

    def check(recipe: Recipe) -> None:
        masked = _masked(subject.program, recipe, tally)
        if masked is None:
            return
        for each in checks:
            at[:] = [each]
            _counted(each.name, lambda e=each: e.run(subject, recipe, masked), tally)

    found = simplest_failure(drawn, check, max_examples=count, start=seed)
    return found, at[0] if at else None


def _masked(program: Program, recipe: Recipe, tally: Tally) -> Program | None:
    masked: list[Program] = []
    _counted("prune", lambda: masked.append(prune(program, recipe)), tally)
    return masked[0] if masked else None


def _counted(name: str, run: Callable[[], None], tally: Tally) -> None:
    """Run a check and count it, or what fxprune refuses in it."""
    try:
        run()
    except InvariantError as error:
        raise DifferenceError(str(error)) from error
    except FxpruneError as error:
        # A ShapeError of fxprune is an AssertionError too, and is a refusal.
        first = str(error).splitlines()[0]
        tally.refused[f"{name}: {first}"] += 1
    else:
        tally.checks[name] += 1


def _hold(outcome: tuple[Found[Recipe] | None, ModelCheck | None]) -> None:
    found, check = outcome
    if found is None:
        return
    name, call = ("prune", "") if check is None else (check.name, check.code)
    recipe = found.value
    lines = [
        *_head(name, found.error),
        f"The simplest recipe that shows it:\n\n{toml_of(recipe)}",
        "",
        "program = fxprune.capture(model, args, kwargs)",
        f"recipe = {recipe_code(recipe)}",
        "masked = fxprune.prune(program, recipe)",
        call,
    ]
    raise DifferenceError("\n".join(lines)) from found.error


def _hold_calls(subject: Subject, tally: Tally, count: int, seed: int) -> None:
    """Hold fxprune.functional to torch on drawn sequences of calls."""
    program = subject.program
    names = [site.name for site in prunable(program)]
    parameters = {name: program.parameter(name) for name in names}

    def check(calls: tuple[Call, ...]) -> None:
        args, kwargs = subject.args, subject.kwargs
        _counted(
            "functional",
            lambda: assert_parity(subject.model, calls, args, kwargs, program=program),
            tally,
        )

    drawn = pruning_sequences(parameters, max_calls=4)
    found = simplest_failure(drawn, check, max_examples=count, start=seed)
    if found is not None:
        lines = [
            *_head("functional", found.error),
            "The simplest calls that show it:\n",
            "from fxprune.testing import Call",
            "",
            f"calls = {found.value!r}",
            "fxprune.testing.assert_parity(model, calls, args, kwargs)",
        ]
        raise DifferenceError("\n".join(lines)) from found.error


def _head(name: str, error: Exception) -> Iterator[str]:
    kind = "" if isinstance(error, DifferenceError) else f"{type(error).__name__}: "
    yield f"the model fails the check {name!r}: {kind}{error}"
    yield ""
