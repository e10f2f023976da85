"""Hold `fxprune.functional` to torch.nn.utils.prune, bit for bit, over a sequence of calls."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import fxprune
import fxprune.functional as fx_prune
from fxprune.testing.architecture import Arch, build
from fxprune.testing.calls import Call, methods_of, perform
from fxprune.testing.comparing import difference
from fxprune.testing.oracle import Oracle, loss_of, step_by_step
from tests.zoo import with_batch

__all__ = ["DifferenceError", "check_calls", "check_sequence"]

OTHER_BATCH = 2
# What torch raises, the narrower kinds first; an error of fxprune must be of the same kind.
REFUSALS = (
    AssertionError,
    NotImplementedError,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    RuntimeError,
)


class DifferenceError(AssertionError):
    """The Program and the oracle differ."""


@lru_cache(maxsize=64)
def _captured(arch: Arch) -> fxprune.Program:
    """Capture once per architecture: that takes far longer than the pruning."""
    model, args, kwargs = build(arch)
    return fxprune.capture(model, args, kwargs)


def check_sequence(arch: Arch, calls: tuple[Call, ...]) -> None:
    """Prune an architecture's model both ways; see `check_calls`."""
    model, args, kwargs = build(arch)
    check_calls(copy.deepcopy(_captured(arch)), model, args, kwargs, calls)


def check_calls(
    program: fxprune.Program,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    calls: tuple[Call, ...],
) -> None:
    """Do each call on a Program and on torch's hooked model, and compare all that can be seen.

    After each call: what was raised, the generator, masks, keys and bits of the state dict, and
    the forward in both modes. At the end: another batch, the state dict both ways, gradients and
    parameters over three optimizer steps, the finalized Program, and `remove` of every mask.

    Args:
        program: captured from `model`; edited.
        model: the source; left as it is.
        args: positional inputs.
        kwargs: keyword inputs.
        calls: what to do, in order.

    Raises:
        DifferenceError: says after which call what differs.
    """
    pair = _Pair(program, Oracle(model), args, kwargs)
    for number, call in enumerate(calls):
        pair.where = f"after call {number + 1}, {call}"
        pair.step(call)
    pair.where = "at the end"
    pair.finish(list(model.state_dict()))


class _Pair:
    """A Program and its oracle, which are led through the same calls."""

    def __init__(
        self, program: fxprune.Program, oracle: Oracle, args: Any, kwargs: dict[str, Any]
    ) -> None:
        self.program = program
        self.oracle = oracle
        self.args, self.kwargs = args, kwargs
        self.where = ""
        self.keys_agree = True

    def same(self, what: str, ours: Any, torchs: Any) -> None:
        found = difference(ours, torchs)
        if found is not None:
            raise DifferenceError(f"{self.where}: {what}: {found} (fxprune first, then torch)")

    # One call

    def step(self, call: Call) -> None:
        refused = self.oracle.apply(call)
        torchs = torch.get_rng_state()
        ours = self.apply(call)
        self.same_refusal(ours, refused)
        # once a tied weight is masked, its keys differ from torch's for good
        self.keys_agree = self.keys_agree and self.oracle.keys_agree
        self.same("masks", dict(self.program.masks), self.oracle.masks())
        self.same_state("state dict")
        if refused is None:
            self.same("generator", torch.get_rng_state(), torchs)
            self.same_forwards("forward", self.args, self.kwargs)

    def apply(self, call: Call) -> Exception | None:
        owners = {name: (self.program, name) for name in call.names}
        weights = {name: self.program.parameter(name) for name in call.names}
        # torch's own classes are taken too: every other call gives them
        library = torch_prune if call.kind == "global_unstructured" and call.seed % 2 else fx_prune
        try:
            perform(call, fx_prune, owners, weights, methods_of(library))
        except Exception as error:  # noqa: BLE001 - every kind of refusal is an answer here
            return error
        return None

    def same_refusal(self, ours: Exception | None, torchs: Exception | None) -> None:
        if ours is None and torchs is None:
            return
        told = f"fxprune: {ours!r}; torch: {torchs!r}"
        if ours is None or torchs is None:
            raise DifferenceError(
                f"{self.where}: one refuses, the other does not: {told}"
            ) from ours
        kind = next((kind for kind in REFUSALS if isinstance(torchs, kind)), type(torchs))
        if not isinstance(ours, kind):
            raise DifferenceError(
                f"{self.where}: refused with another kind of error: {told}"
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
        args, kwargs = with_batch(self.args, self.kwargs, OTHER_BATCH)
        self.same_forwards(f"forward at batch {OTHER_BATCH}", args, kwargs)
        if self.keys_agree:
            self.exchange()
        self.train()
        self.finalize(keys)
        self.remove()

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
        program = self.program.train()

        def forward() -> Any:
            return program(*self.args, **self.kwargs)

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
        return {name: _read(self.program, name) for name in self.oracle.names}

    def finalize(self, keys: list[str]) -> None:
        final = fxprune.finalize(self.program)
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


def _read(program: fxprune.Program, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return getattr(program.get_submodule(path), attribute)


def _spoil(model: nn.Module) -> None:
    """Change all that a state dict holds, masks among them, so that loading must act."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
