"""`check_model`: a model is put to every test, by drawn recipes of every method.

Each check has the code that shows what it does.
"""

from __future__ import annotations

import copy
import io
import runpy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.compiler import capture, finalize, prune, shrink
from fxprune.errors import AmountError, FxpruneError, InvariantError
from fxprune.files import export, load, read_weights, save
from fxprune.program import Program, copied
from fxprune.recipe import Recipe
from fxprune.testing.assert_pass import Memory, assert_idempotent, assert_transactional
from fxprune.testing.calls import STRUCTURED, Call
from fxprune.testing.code import recipe_code, toml_of
from fxprune.testing.comparing import DifferenceError, assert_close, assert_same
from fxprune.testing.drawing import METHODS, prunable, pruning_sequences, recipes, seed_rules
from fxprune.testing.parity import assert_parity
from fxprune.testing.pass_checks import CheckCounts, Checked
from fxprune.testing.searching import simplest_failure


@dataclass(frozen=True)
class Subject:
    """What is checked: a model, the Program captured from it, and inputs."""

    model: nn.Module
    program: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def check_same(self, after: Program, before: Program) -> None:
        """Hold two Programs to each other, on the model's input and on one of another batch."""
        assert_same(after, before, self.args, self.kwargs, trials=1)


@dataclass(frozen=True)
class ModelCheck:
    """One check of a subject, a recipe and the masked Program."""

    name: str
    run: Callable[[Subject, Recipe, Program], None]
    code: str  # `model`, `program`, `recipe`, `masked`, `args` and `kwargs` are there


def _check_parity(subject: Subject, recipe: Recipe, masked: Program) -> None:
    args, kwargs = subject.args, subject.kwargs
    assert_parity(subject.model, recipe, args, kwargs, program=subject.program)


def _check_transactional(subject: Subject, recipe: Recipe, masked: Program) -> None:
    last = recipe.rules[-1].model_copy(update={"name": "too many", "seed": 0, **_TOO_MANY})
    failing = recipe.model_copy(update={"rules": (*recipe.rules, last)})
    with torch.random.fork_rng(devices=[]):
        seeded = seed_rules(failing)
        program = copied(subject.program)
        assert_transactional(program, lambda p: prune(p, seeded, inplace=True), raises=AmountError)


_TOO_MANY = {
    **{"method": "l1_unstructured", "amount": 2**40, "scope": "global", "coupled": False},
    **dict.fromkeys(("score", "granularity", "n", "dim")),
}


def _check_pickle(subject: Subject, recipe: Recipe, masked: Program) -> None:
    file = io.BytesIO()
    torch.save(masked, file)
    file.seek(0)
    subject.check_same(torch.load(file, weights_only=False), masked)


def _check_save(subject: Subject, recipe: Recipe, masked: Program) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(masked, Path(folder, "program.fxp"))
        subject.check_same(load(path), masked)


def _check_shrink(subject: Subject, recipe: Recipe, masked: Program) -> None:
    wide = copied(finalize(masked)).double()
    assert_close(shrink(wide), wide, subject.args, subject.kwargs, trials=1)


def _check_export(subject: Subject, recipe: Recipe, masked: Program) -> None:
    final = finalize(masked).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = export(final, Path(folder, "model.pt2"))
        loaded = torch.export.load(path).module()
    with torch.enable_grad():
        ours = final(*subject.args, **subject.kwargs)
        assert_same(loaded(*subject.args, **subject.kwargs), ours)


def _check_weights(subject: Subject, recipe: Recipe, masked: Program) -> None:
    final = finalize(masked)
    with tempfile.TemporaryDirectory() as folder:
        path = export(final, Path(folder, "model.safetensors"))
        zeroed = copied(final)
        for tensor in zeroed.state_dict().values():
            tensor.zero_()
        zeroed.load_state_dict(read_weights(path))
        subject.check_same(zeroed, final)


def _check_source(subject: Subject, recipe: Recipe, masked: Program) -> None:
    final = finalize(masked).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = export(final, Path(folder, "model.py"))
        loaded = runpy.run_path(str(path), run_name="model")["load"]()
    # The file needs torch alone, so what is of another package's class it gives as a dict.
    theirs, ours = (each(*subject.args, **subject.kwargs) for each in (loaded, final))
    assert_same(pytree.tree_leaves(theirs), pytree.tree_leaves(ours))


CHECKS = (
    ModelCheck(
        "parity",
        _check_parity,
        "fxprune.testing.assert_parity(model, recipe, args, kwargs, program=program)",
    ),
    ModelCheck(
        "finalize",
        lambda subject, recipe, masked: subject.check_same(finalize(masked), masked),
        "fxprune.testing.assert_same(fxprune.finalize(masked), masked, args, kwargs)",
    ),
    ModelCheck(
        "idempotent",
        lambda subject, recipe, masked: assert_idempotent(masked, finalize),
        "fxprune.testing.assert_idempotent(masked, fxprune.finalize)",
    ),
    ModelCheck(
        "transactional",
        _check_transactional,
        "too_many = {'select': '*', 'method': 'l1_unstructured', 'amount': 2**40}\n"
        "failing = {'rule': [*recipe['rule'], too_many]}\n"
        "act = lambda p: fxprune.prune(p, failing, inplace=True)\n"
        "fxprune.testing.assert_transactional(program, act)",
    ),
    ModelCheck(
        "deepcopy",
        lambda subject, recipe, masked: subject.check_same(copy.deepcopy(masked), masked),
        "import copy\nfxprune.testing.assert_same(copy.deepcopy(masked), masked, args, kwargs)",
    ),
    ModelCheck(
        "pickle",
        _check_pickle,
        "import pickle\n"
        "again = pickle.loads(pickle.dumps(masked))\n"
        "fxprune.testing.assert_same(again, masked, args, kwargs)",
    ),
    ModelCheck(
        "save",
        _check_save,
        'again = fxprune.load(fxprune.save(masked, "masked.fxp"))\n'
        "fxprune.testing.assert_same(again, masked, args, kwargs)",
    ),
)
COUPLED = (
    ModelCheck(
        "shrink",
        _check_shrink,
        "final = fxprune.finalize(masked).double()\n"
        "fxprune.testing.assert_close(fxprune.shrink(final), final, args, kwargs)",
    ),
)
EXPORTS = (
    ModelCheck(
        "export",
        _check_export,
        'path = fxprune.export(fxprune.finalize(masked).eval(), "model.pt2")\n'
        "loaded = torch.export.load(path).module()",
    ),
    ModelCheck(
        "weights",
        _check_weights,
        "import copy, safetensors.torch\n"
        "final = fxprune.finalize(masked)\n"
        'path = fxprune.export(final, "model.safetensors")\n'
        "again = copy.deepcopy(final)\n"
        "again.load_state_dict(safetensors.torch.load_file(path))\n"
        "fxprune.testing.assert_same(again, final, args, kwargs)",
    ),
    ModelCheck(
        "source",
        _check_source,
        "import runpy\n"
        "final = fxprune.finalize(masked).eval()\n"
        'loaded = runpy.run_path(fxprune.export(final, "model.py"))["load"]()\n'
        "leaves = torch.utils._pytree.tree_leaves\n"
        "found = [leaves(each(*args, **kwargs)) for each in (loaded, final)]\n"
        "fxprune.testing.assert_same(*found)",
    ),
)


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
    memory, counts = Memory(model), CheckCounts(type(model).__name__)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program = capture(model, args, kwargs, batch=batch)
        assert_same(program, model, args, kwargs, trials=2)
        counts.checks["capture"] += 1
        subject = Subject(model, program, args, kwargs)
        if prunable(program):
            _check_drawn(subject, counts, max(1, max_examples // _PARTS), seed)
    if fault := memory.difference(model):
        raise DifferenceError(f"the checks changed the model: {fault}")
    counts.checks["unchanged"] += 1
    return counts.result()


def _split(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _check_drawn(subject: Subject, counts: CheckCounts, each: int, seed: int) -> None:
    """Check each method, coupled channels, an export, and calls of fxprune.functional."""
    program = subject.program
    matrices = any(len(site.shape) > 1 for site in prunable(program))
    methods = [m for m in METHODS if matrices or m not in STRUCTURED]
    plans: list[_Plan] = [(recipes(program, methods=[m], max_rules=2), CHECKS) for m in methods]
    if matrices:
        coupled = recipes(program, max_rules=1, coupled=True)
        plans.append((coupled, COUPLED))
    for drawn, checks in plans:
        # A cut has more ways to be wrong than a mask: a recipe reaches few of a model's channels.
        count = 3 * each if checks is COUPLED else each
        _check_recipes(subject, counts, drawn, checks, count, seed)
    _check_recipes(subject, counts, recipes(program, max_rules=1), EXPORTS, 1, seed)
    _check_calls(subject, counts, each, seed)


def _check_recipes(
    subject: Subject,
    counts: CheckCounts,
    drawn: st.SearchStrategy[Recipe],
    checks: Sequence[ModelCheck],
    count: int,
    seed: int,
) -> None:
    """Look for a recipe on which a check fails; raise it with the simplest, and that check."""
    at: list[ModelCheck] = []

    def check(recipe: Recipe) -> None:
        masked = _mask(subject.program, recipe, counts)
        if masked is None:
            return
        for each in checks:
            at[:] = [each]
            _count_check(each.name, lambda e=each: e.run(subject, recipe, masked), counts)

    failure = simplest_failure(drawn, check, max_examples=count, start=seed)
    if failure is None:
        return
    name, call = (at[0].name, at[0].code) if at else ("prune", "")
    recipe = failure.value
    lines = [
        f"The simplest recipe that shows it:\n\n{toml_of(recipe)}",
        "",
        "program = fxprune.capture(model, args, kwargs)",
        f"recipe = {recipe_code(recipe)}",
        "masked = fxprune.prune(program, recipe)",
        call,
    ]
    raise _failure_error(name, failure.error, lines) from failure.error


def _mask(program: Program, recipe: Recipe, counts: CheckCounts) -> Program | None:
    masked: list[Program] = []
    _count_check("prune", lambda: masked.append(prune(program, recipe)), counts)
    return masked[0] if masked else None


def _count_check(name: str, run: Callable[[], None], counts: CheckCounts) -> None:
    """Run a check and count it, or what fxprune refuses in it."""
    try:
        run()
    except InvariantError as error:
        raise DifferenceError(str(error)) from error
    except FxpruneError as error:
        # A ShapeError of fxprune is an AssertionError too, and is a refusal.
        first = str(error).splitlines()[0]
        counts.refused[f"{name}: {first}"] += 1
    else:
        counts.checks[name] += 1


def _check_calls(subject: Subject, counts: CheckCounts, count: int, seed: int) -> None:
    """Hold fxprune.functional to torch on drawn sequences of calls."""
    program = subject.program
    names = [site.name for site in prunable(program)]
    parameters = {name: program.parameter(name) for name in names}

    def check(calls: tuple[Call, ...]) -> None:
        args, kwargs = subject.args, subject.kwargs
        _count_check(
            "functional",
            lambda: assert_parity(subject.model, calls, args, kwargs, program=program),
            counts,
        )

    drawn = pruning_sequences(parameters, max_calls=4)
    failure = simplest_failure(drawn, check, max_examples=count, start=seed)
    if failure is not None:
        lines = [
            "The simplest calls that show it:\n",
            "from fxprune.testing import Call",
            "",
            f"calls = {failure.value!r}",
            "fxprune.testing.assert_parity(model, calls, args, kwargs)",
        ]
        raise _failure_error("functional", failure.error, lines) from failure.error


def _failure_error(name: str, error: Exception, lines: list[str]) -> DifferenceError:
    kind = "" if isinstance(error, DifferenceError) else f"{type(error).__name__}: "
    head = f"the model fails the check {name!r}: {kind}{error}"
    return DifferenceError("\n".join([head, "", *lines]))
