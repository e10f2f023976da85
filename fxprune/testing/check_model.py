"""The checks of `check_model` on one recipe, each with the code that shows what it does."""

from __future__ import annotations

import copy
import io
import runpy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.compiler import finalize, prune, shrink
from fxprune.errors import AmountError
from fxprune.files import export, read_weights
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.saving import load, save
from fxprune.testing.assertions import assert_close, assert_same
from fxprune.testing.parity import assert_parity
from fxprune.testing.pass_assertions import assert_idempotent, assert_transactional
from fxprune.transaction import copied

__all__ = ["CHECKS", "COUPLED", "EXPORTS", "ModelCheck", "Subject"]


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Args:
        model: the user's.
        program: captured from it.
        args: positional inputs.
        kwargs: keyword inputs.
    """

    model: nn.Module
    program: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def same(self, after: Program, before: Program) -> None:
        """Hold two Programs to each other, on the model's input and on one of another batch."""
        assert_same(after, before, self.args, self.kwargs, trials=1)


@dataclass(frozen=True)
class ModelCheck:
    """One check.

    Args:
        name: what it is called.
        run: takes the subject, the recipe and the masked Program.
        code: shows it; `model`, `program`, `recipe`, `masked`, `args` and `kwargs` are there.
    """

    name: str
    run: Callable[[Subject, Recipe, Program], None]
    code: str


def _parity(subject: Subject, recipe: Recipe, masked: Program) -> None:
    args, kwargs = subject.args, subject.kwargs
    assert_parity(subject.model, recipe, args, kwargs, program=subject.program)


def _finalized(subject: Subject, recipe: Recipe, masked: Program) -> None:
    subject.same(finalize(masked), masked)


def _idempotent(subject: Subject, recipe: Recipe, masked: Program) -> None:
    assert_idempotent(masked, finalize)


def _transactional(subject: Subject, recipe: Recipe, masked: Program) -> None:
    last = recipe.rules[-1].model_copy(update={"name": "too many", "seed": 0, **_TOO_MANY})
    failing = recipe.model_copy(update={"rules": (*recipe.rules, last)})
    with torch.random.fork_rng(devices=[]):
        seeded = _seeded(failing)
        program = copied(subject.program)
        assert_transactional(program, lambda p: prune(p, seeded, inplace=True), raises=AmountError)


_TOO_MANY = {
    "method": "l1_unstructured",
    "score": None,
    "granularity": None,
    "amount": 2**40,
    "n": None,
    "dim": None,
    "scope": "global",
    "coupled": False,
}


def _deepcopied(subject: Subject, recipe: Recipe, masked: Program) -> None:
    subject.same(copy.deepcopy(masked), masked)


def _pickled(subject: Subject, recipe: Recipe, masked: Program) -> None:
    file = io.BytesIO()
    torch.save(masked, file)
    file.seek(0)
    subject.same(torch.load(file, weights_only=False), masked)


def _saved(subject: Subject, recipe: Recipe, masked: Program) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(masked, Path(folder, "program.fxp"))
        subject.same(load(path), masked)


def _shrunk(subject: Subject, recipe: Recipe, masked: Program) -> None:
    wide = copied(finalize(masked)).double()
    assert_close(shrink(wide), wide, subject.args, subject.kwargs, trials=1)


def _exported(subject: Subject, recipe: Recipe, masked: Program) -> None:
    final = finalize(masked).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = export(final, Path(folder, "model.pt2"))
        loaded = torch.export.load(path).module()
    with torch.enable_grad():
        ours = final(*subject.args, **subject.kwargs)
        assert_same(loaded(*subject.args, **subject.kwargs), ours)


def _weights(subject: Subject, recipe: Recipe, masked: Program) -> None:
    final = finalize(masked)
    with tempfile.TemporaryDirectory() as folder:
        path = export(final, Path(folder, "model.safetensors"))
        zeroed = copied(final)
        for tensor in zeroed.state_dict().values():
            tensor.zero_()
        zeroed.load_state_dict(read_weights(path))
        subject.same(zeroed, final)


def _source(subject: Subject, recipe: Recipe, masked: Program) -> None:
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
        _parity,
        "fxprune.testing.assert_parity(model, recipe, args, kwargs, program=program)",
    ),
    ModelCheck(
        "finalize",
        _finalized,
        "fxprune.testing.assert_same(fxprune.finalize(masked), masked, args, kwargs)",
    ),
    ModelCheck(
        "idempotent",
        _idempotent,
        "fxprune.testing.assert_idempotent(masked, fxprune.finalize)",
    ),
    ModelCheck(
        "transactional",
        _transactional,
        "too_many = {'select': '*', 'method': 'l1_unstructured', 'amount': 2**40}\n"
        "failing = {'rule': [*recipe['rule'], too_many]}\n"
        "act = lambda p: fxprune.prune(p, failing, inplace=True)\n"
        "fxprune.testing.assert_transactional(program, act)",
    ),
    ModelCheck(
        "deepcopy",
        _deepcopied,
        "import copy\nfxprune.testing.assert_same(copy.deepcopy(masked), masked, args, kwargs)",
    ),
    ModelCheck(
        "pickle",
        _pickled,
        "import pickle\n"
        "again = pickle.loads(pickle.dumps(masked))\n"
        "fxprune.testing.assert_same(again, masked, args, kwargs)",
    ),
    ModelCheck(
        "save",
        _saved,
        'again = fxprune.load(fxprune.save(masked, "masked.fxp"))\n'
        "fxprune.testing.assert_same(again, masked, args, kwargs)",
    ),
)
COUPLED = (
    ModelCheck(
        "shrink",
        _shrunk,
        "final = fxprune.finalize(masked).double()\n"
        "fxprune.testing.assert_close(fxprune.shrink(final), final, args, kwargs)",
    ),
)
EXPORTS = (
    ModelCheck(
        "export",
        _exported,
        'path = fxprune.export(fxprune.finalize(masked).eval(), "model.pt2")\n'
        "loaded = torch.export.load(path).module()",
    ),
    ModelCheck(
        "weights",
        _weights,
        "import copy, safetensors.torch\n"
        "final = fxprune.finalize(masked)\n"
        'path = fxprune.export(final, "model.safetensors")\n'
        "again = copy.deepcopy(final)\n"
        "again.load_state_dict(safetensors.torch.load_file(path))\n"
        "fxprune.testing.assert_same(again, final, args, kwargs)",
    ),
    ModelCheck(
        "source",
        _source,
        "import runpy\n"
        "final = fxprune.finalize(masked).eval()\n"
        'loaded = runpy.run_path(fxprune.export(final, "model.py"))["load"]()\n'
        "leaves = torch.utils._pytree.tree_leaves\n"
        "found = [leaves(each(*args, **kwargs)) for each in (loaded, final)]\n"
        "fxprune.testing.assert_same(*found)",
    ),
)


def _seeded(recipe: Recipe) -> Recipe:
    """Let no rule draw from the global generator, which a failed call need not give back."""
    rules = tuple(
        rule.model_copy(update={"seed": 0}) if "random" in str(rule.method) else rule
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": rules})
