"""Hold `fxprune.functional` to torch.nn.utils.prune, bit for bit, over a sequence of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import functional as fx_prune
from fxprune.compiler import RecipeLike, capture, finalize, prune
from fxprune.program import Program, copied
from fxprune.recipe import Recipe
from fxprune.reports import recipe_of
from fxprune.testing.architecture import Arch, build
from fxprune.testing.calls import Call, calls_of, methods_of, perform, with_torchs_ties
from fxprune.testing.comparing import DifferenceError, difference
from fxprune.testing.drawing import capture_arch
from fxprune.testing.oracle import Oracle, assert_alike_but_for_ties, loss_of, step_by_step

OTHER_BATCH = 2
_SEED = 1  # of the global generator before a recipe
# What torch raises, the narrower kinds first; an error of fxprune must be of the same kind.
REFUSALS = (
    *(AssertionError, NotImplementedError, AttributeError, KeyError, IndexError),
    *(TypeError, ValueError, RuntimeError),
)


def check_sequence(arch: Arch, calls: tuple[Call, ...]) -> None:
    """Prune an architecture's model both ways; see `assert_parity`."""
    model, args, kwargs = build(arch)
    assert_parity(model, calls, args, kwargs, program=capture_arch(arch))


def assert_parity(
    model: nn.Module,
    what: RecipeLike | Sequence[Call],
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    program: Program | None = None,
    batch: Any = 0,
) -> None:
    """Prune a Program and, by torch.nn.utils.prune, its model; all that can be seen is equal.

    Compared bit for bit after each call, or after the recipe: what was raised, the generator,
    masks, keys and values of the state dict, and the forward in both modes. At the end: another
    batch, the state dict both ways, gradients and parameters over three optimizer steps, the
    finalized Program, and `remove` of every mask. A recipe is run with `ties = "torch"`, and where
    it asks for other ties, the count and the magnitudes that are pruned are compared as well.

    Args:
        model: the source; not changed.
        what: a recipe, or a sequence of `Call`.
        args: positional inputs.
        kwargs: keyword inputs.
        program: captured from `model`, to save the time; not changed.
        batch: the batch dimension, as `fxprune.capture` takes it.

    Raises:
        DifferenceError: an AssertionError that says what differs first, and by which values.
        PassError: torch.nn.utils.prune has no counterpart of a rule.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> rule = {"select": "*.weight", "method": "l1_unstructured", "amount": 0.5}
        >>> assert_parity(model, {"rule": [rule]}, torch.randn(3, 3))
        >>> assert_parity(model, [Call("remove", ("0.bias",))], torch.randn(3, 3))
    """
    given = (args,) if isinstance(args, Tensor) else tuple(args)
    keywords = dict(kwargs or {})
    if program is None:
        program = capture(model, given, keywords, batch=batch)
    pair = _Pair(copied(program), Oracle(model), given, keywords)
    if isinstance(what, Sequence) and not isinstance(what, str):
        for number, call in enumerate(what):
            pair.where = f"after call {number + 1}, {call}"
            pair.step(call)
    else:
        recipe = recipe_of(what)
        pair.where = "after the recipe"
        pair.follow(recipe, list(calls_of(program, recipe)))
        assert_alike_but_for_ties(program, recipe, pair.program)
    pair.where = "at the end"
    pair.finish(list(model.state_dict()))


class _Pair:
    """A Program and its oracle, which are led through the same calls."""

    def __init__(self, program: Program, oracle: Oracle, args: Any, kwargs: dict[str, Any]) -> None:
        self.program = program
        self.oracle = oracle
        self.args, self.kwargs = args, kwargs
        self.where = ""
        self.keys_agree = True

    def same(self, what: str, ours: Any, torchs: Any) -> None:
        if fault := difference(ours, torchs):
            raise DifferenceError(f"{self.where}: {what}: {fault} (fxprune first, then torch)")

    # One call

    def step(self, call: Call) -> None:
        refused = self.oracle.apply(call)
        torchs = torch.get_rng_state()
        self.compare(self.apply(call), refused, torchs)

    def follow(self, recipe: Recipe, steps: Sequence[tuple[int | None, tuple[Call, ...]]]) -> None:
        """Prune by a recipe, and the oracle by the calls that it stands for."""
        torch.manual_seed(_SEED)
        refused: Exception | None = None
        for seed, calls in steps:
            with torch.random.fork_rng(devices=[], enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                for call in calls:
                    refused = refused or self.oracle.apply(call)
        torchs = torch.get_rng_state()
        torch.manual_seed(_SEED)
        ours: Exception | None = None
        try:
            prune(self.program, with_torchs_ties(recipe), inplace=True)
        except Exception as error:  # noqa: BLE001 - every kind of refusal is an answer here
            ours = error
        # What torch had done before it refused a later call stays.
        self.compare(ours, refused, torchs, state=refused is None)

    def compare(
        self,
        ours: Exception | None,
        refused: Exception | None,
        torchs: Tensor,
        *,
        state: bool = True,
    ) -> None:
        """Compare what both raised or made, and the generator, as torch's is afterwards."""
        self.same_refusal(ours, refused)
        # once a tied weight is masked, its keys differ from torch's for good
        self.keys_agree = self.keys_agree and self.oracle.keys_agree
        if state:
            self.same("masks", dict(self.program.masks), self.oracle.masks())
            self.same_state("state dict")
        if refused is None:
            self.same("generator", torch.get_rng_state(), torchs)
            self.same_forwards("forward", self.args, self.kwargs)

    def apply(self, call: Call) -> Exception | None:
        owners = {name: (self.program, name) for name in call.names}
        weights = {name: self.program.parameter(name) for name in call.names}
        # torch's own classes are taken too: every other call gives them
        given = call.kind == "global_unstructured" and (call.seed or 0) % 2
        library = torch_prune if given else fx_prune
        try:
            perform(call, fx_prune, owners, weights, methods_of(library))
        except Exception as error:  # noqa: BLE001 - every kind of refusal is an answer here
            return error
        return None

    def same_refusal(self, ours: Exception | None, torchs: Exception | None) -> None:
        if ours is None and torchs is None:
            return
        fault = f"fxprune: {ours!r}; torch: {torchs!r}"
        if ours is None or torchs is None:
            raise DifferenceError(
                f"{self.where}: one refuses, the other does not: {fault}"
            ) from ours
        kind = next((kind for kind in REFUSALS if isinstance(torchs, kind)), type(torchs))
        if not isinstance(ours, kind):
            raise DifferenceError(
                f"{self.where}: refused with another kind of error: {fault}"
            ) from ours

    def same_state(self, what: str) -> None:
        ours, torchs = dict(self.program.state_dict()), dict(self.oracle.state_dict())
        if not self.keys_agree:
            return
        self.same(f"keys of the {what}", list(ours), list(torchs))
        self.same(what, ours, torchs)

    def same_forwards(self, what: str, args: Any, kwargs: dict[str, Any]) -> None:
        for train in (True, False):
            torch.manual_seed(1)
            ours = self.program.train(train)(*args, **kwargs)
            torch.manual_seed(1)
            torchs = self.oracle.forward(args, kwargs, train=train)
            self.same(f"{what} in {'train' if train else 'eval'} mode", ours, torchs)

    # The end

    def finish(self, keys: list[str]) -> None:
        self.other_batch()
        if self.keys_agree:
            self.exchange()
        self.train()
        self.finalize(keys)
        self.remove()

    def other_batch(self) -> None:
        """Run on a drawn input of another batch, if the model takes that."""
        if not self.program.captured.inputs.drawable:
            return
        args, kwargs = self.program.example(batch=OTHER_BATCH, seed=_SEED)
        try:
            self.oracle.forward(args, kwargs, train=False)
        except Exception:  # noqa: BLE001 - what a model says of values that it was not made for
            return
        self.same_forwards(f"forward at batch {OTHER_BATCH}", args, kwargs)

    def exchange(self) -> None:
        """Load each one's state dict into the other after its parameters were changed."""
        ours, torchs = self.program, self.oracle.hooked
        saved = {k: v.clone() for k, v in torchs.state_dict().items()}
        _spoil(ours)
        ours.load_state_dict(saved, strict=True)
        self.same_state("state dict that torch's was loaded into")
        self.same_forwards("forward with torch's state dict", self.args, self.kwargs)
        saved = {k: v.clone() for k, v in ours.state_dict().items()}
        _spoil(torchs)
        torchs.load_state_dict(saved, strict=True)
        self.same_state("state dict that was loaded into torch's")
        self.same_forwards("forward with torch's copy of the state", self.args, self.kwargs)

    def train(self) -> None:
        outputs = pytree.tree_leaves(self.program.eval()(*self.args, **self.kwargs))
        if not any(isinstance(x, Tensor) and x.requires_grad for x in outputs):
            return
        program = self.program.train()
        forward = partial(program, *self.args, **self.kwargs)
        ours = step_by_step(program, forward, loss=loss_of, steps=3, lr=0.1, seed=2)
        torchs = self.oracle.train(self.args, self.kwargs, seed=2)
        for step, (mine, other) in enumerate(zip(ours, torchs, strict=True)):
            self.same(f"parameters with a gradient in step {step + 1}", list(mine), list(other))
            self.same(f"gradients of step {step + 1}", mine, other)
        self.same("weights after three steps", self.values(), self.oracle.weights())
        self.same_state("state dict after three steps")
        self.same_forwards("forward after three steps", self.args, self.kwargs)

    def values(self) -> dict[str, Any]:
        """What each parameter name of the Program reads: the masked value of a pruned one."""
        parts = {name: name.rpartition(".") for name in self.oracle.names}
        modules = {path: self.program.get_submodule(path) for path, _, _ in parts.values()}
        return {name: getattr(modules[path], key) for name, (path, _, key) in parts.items()}

    def finalize(self, keys: list[str]) -> None:
        final = finalize(self.program)
        buffers = dict(self.oracle.hooked.named_buffers(remove_duplicate=False))
        values = {**buffers, **self.oracle.weights()}
        self.same("keys after finalize", list(final.state_dict()), keys)
        self.same(
            "state dict after finalize", dict(final.state_dict()), {k: values[k] for k in keys}
        )

    def remove(self) -> None:
        for name in list(self.oracle.masks()):
            self.where = f"after the last remove, of {name}"
            self.step(Call("remove", (name,)))
        self.same("masks after remove", dict(self.program.masks), {})
        self.same("weights after remove", self.values(), self.oracle.weights())


def _spoil(model: nn.Module) -> None:
    """Change all that a state dict holds, masks among them, so that loading must act."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
