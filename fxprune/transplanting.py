"""Carry an optimizer's state over a shrink: the same momenta, for the channels that stayed."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune import tensors
from fxprune.errors import PassError, PassTypeError, ShapeError
from fxprune.program import Program
from fxprune.shell import raw_parameter
from fxprune.shrink_record import ShrinkRecord

__all__ = ["transplant"]

# What every optimizer holds; what else one holds may be tied to its old parameters.
_COMMON = frozenset(vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)))


def transplant(
    optimizer: Optimizer, program: Program, *, before: nn.Module | None = None
) -> Optimizer:
    """Return an optimizer of the same kind over a shrunk Program, its state cut as the weights are.

    Parameter groups stay, with all their settings; of each state tensor that has its parameter's
    shape, as momenta have, the channels stay that the parameter kept; counts of steps stay. Biases
    that the shrink added join the group of their layer's weight, and start without state.
    Parameters that the shrink dropped leave. Hooks of the optimizer are not taken over, and a
    schedule of its learning rate must be made for the new one.

    Args:
        optimizer: any optimizer of torch whose state tensors have their parameters' shapes, as
            SGD's, Adam's and AdamW's; it is not changed.
        program: the shrunk Program.
        before: the Program, or the model, whose parameters the optimizer holds. None where
            `program` itself was shrunk in place, so that they are its own; then one call carries
            over its last shrink.

    Raises:
        PassTypeError: no optimizer, or no Program, was given.
        PassError: a parameter of the optimizer is not one of `before`, or its state cannot be cut;
            names the parameter and the state.

    Example:
        >>> from fxprune.compiler import capture
        >>> from fxprune.shrinking import shrink
        >>> model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[1:3].zero_()
        >>> program = capture(model, (torch.zeros(2, 3),))
        >>> optimizer = torch.optim.SGD(program.parameters(), lr=0.1, momentum=0.9)
        >>> program(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> small = shrink(program)
        >>> moved = transplant(optimizer, small, before=program)
        >>> moved.state[small.get_submodule("0").weight]["momentum_buffer"].shape
        torch.Size([2, 3])
    """
    _check_types(optimizer, program)
    plan = _Plan(program, program if before is None else before)
    extra = {key: value for key, value in vars(optimizer).items() if key not in _COMMON}
    if any(_holds_tensors(value) for value in extra.values()):
        kind = type(optimizer).__name__
        raise PassError(
            f"{kind} keeps tensors beside its state, which cannot be carried over; make a new "
            f"{kind} of the shrunk program's parameters"
        )
    made = copy.copy(optimizer)  # its class may take other arguments than it keeps
    made.__dict__.update(extra)
    made.state = defaultdict(dict)
    made.param_groups = [plan.group(group) for group in optimizer.param_groups]
    plan.add_biases(made.param_groups)
    for old, state in optimizer.state.items():
        name = plan.name(old)
        new = plan.after.get(name)
        if new is not None:
            made.state[new] = {key: plan.cut(name, key, part) for key, part in state.items()}
    return made


def _check_types(optimizer: Any, program: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise PassTypeError(f"transplant takes an optimizer, not {type(optimizer).__name__}")
    if not isinstance(program, Program):
        raise PassTypeError(
            f"transplant takes the shrunk Program, not {type(program).__name__}; see fxprune.shrink"
        )


class _Plan:
    """Which parameter becomes which, and which of its channels stay.

    Args:
        program: the shrunk Program.
        before: what held the optimizer's parameters.
    """

    def __init__(self, program: Program, before: nn.Module) -> None:
        self.records = _records(program, before)
        self.before = {id(p): name for name, p in _parameters(before)}
        self.after = dict(_parameters(program))
        self._kept: dict[str, list[tuple[int, Sequence[int]]]] = {}
        for record in self.records:
            for found in record.maps:
                self._kept.setdefault(found.tensor, []).append((found.axis, found.kept))

    def name(self, parameter: torch.Tensor) -> str:
        """Return a parameter's name.

        Raises:
            PassError: it is none that is known.
        """
        if id(parameter) not in self.before:
            raise PassError(
                f"a parameter of shape {tuple(parameter.shape)} in the optimizer is not one of "
                "the model before the shrink; give before= the Program that the optimizer was made "
                "for"
            )
        return self.before[id(parameter)]

    def group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return a parameter group over the shrunk Program's parameters."""
        names = [self.name(parameter) for parameter in group["params"]]
        stay = [at for at, name in enumerate(names) if name in self.after]
        made = {**group, "params": [self.after[names[at]] for at in stay]}
        if "param_names" in group:
            made["param_names"] = [group["param_names"][at] for at in stay]
        return made

    def add_biases(self, groups: list[dict[str, Any]]) -> None:
        """Let biases that the shrink added join their layers' groups."""
        for name in (name for record in self.records for name in record.added):
            new = self.after.get(name)
            if new is None or any(new is p for group in groups for p in group["params"]):
                continue
            owner = name.rpartition(".")[0]
            near = {id(p) for key, p in self.after.items() if key.rpartition(".")[0] == owner}
            home = (g for g in groups if any(id(p) in near for p in g["params"]))
            group = next(home, groups[-1])
            group["params"].append(new)
            if "param_names" in group:
                group["param_names"].append(name)

    def cut(self, name: str, key: str, part: Any) -> Any:
        """Return one entry of a parameter's state, cut as the parameter is.

        Raises:
            PassError: it is tied to the parameter in a way that is not known.
        """
        if not _holds_tensors(part):
            return copy.deepcopy(part)
        if isinstance(part, torch.Tensor) and part.dim() == 0:
            return part.clone()
        steps = self._kept.get(name, [])
        fits = isinstance(part, torch.Tensor) and part.shape == self._shape(name)
        if not fits:
            raise PassError(
                f"the state {key!r} of {name!r} is no tensor of the parameter's shape "
                f"{tuple(self._shape(name))}, so that it is not known how to cut it"
            )
        for axis, kept in steps:
            part = part.index_select(axis, torch.tensor(kept, device=part.device))
        if part.shape != self.after[name].shape:
            raise ShapeError(f"the state {key!r} of {name!r} does not become of the new shape")
        return part.clone(memory_format=torch.preserve_format) if not steps else part

    def _shape(self, name: str) -> torch.Size:
        """Return the shape of a parameter before the shrinks, though it was cut in place since."""
        shape = list(self.after[name].shape)
        for record in reversed(self.records):
            for found in (f for f in record.maps if f.tensor == name):
                shape[found.axis] = found.before
        return torch.Size(shape)


def _records(program: Program, before: nn.Module) -> tuple[ShrinkRecord, ...]:
    """Return the shrinks between two states of a Program, oldest first."""
    shrinks = program.captured.shrinks
    if not shrinks:
        raise PassError("the program was not shrunk, so that there is nothing to carry over")
    if before is program:
        return shrinks[-1:]
    done = len(before.captured.shrinks) if isinstance(before, Program) else 0
    return shrinks[done:]


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name without a mask's suffix, Parameter), each parameter under its first name."""
    if isinstance(model, Program):
        for name in tensors.aliases(model):
            found = raw_parameter(*tensors.owner(model, name))
            if found is not None:  # else the shrink dropped it
                yield name, found
        return
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        plain = name.removesuffix("_orig")
        hooked = plain != name and f"{plain.rpartition('.')[2]}_mask" in owner._buffers
        yield (plain if hooked else name), parameter


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)
