"""After a shrink: an optimizer's state carried over, and the new shapes as data.

delta = shape_delta(small)             # JSON can hold it
model = apply_delta(Net(), delta)      # an instance of the source's class, resized
model.load_state_dict(small.state_dict())
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.optim import Optimizer

from fxprune.errors import FormatError, PassError, PassTypeError, ShapeError
from fxprune.program import (
    AxisMap,
    Program,
    ShrinkRecord,
    check_program,
    joined_record,
    ops,
    parameter_of,
    parameters,
    raw_parameter,
)

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
        >>> from fxprune.compiler import shrink
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
    if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(f"transplant takes an optimizer, not {type(optimizer).__name__}")
    if not isinstance(program, Program):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(
            f"transplant takes the shrunk Program, not {type(program).__name__}; see fxprune.shrink"
        )
    plan = _Transplant(program, program if before is None else before)
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


class _Transplant:
    """Which parameter becomes which, and which of its channels stay."""

    def __init__(self, program: Program, before: nn.Module) -> None:
        self.records = _records(program, before)
        self.before = {id(p): name for name, p in _parameters(before)}
        self.after = dict(_parameters(program))
        self.maps = _maps_by_tensor(self.records)

    def name(self, parameter: torch.Tensor) -> str:
        """Return a parameter's name; PassError where it is none that is known."""
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
        """Return one entry of a parameter's state, cut as it is, or raise a PassError."""
        if not _holds_tensors(part):
            return copy.deepcopy(part)
        if isinstance(part, torch.Tensor) and part.dim() == 0:
            return part.clone()
        maps = self.maps.get(name, [])
        fits = isinstance(part, torch.Tensor) and part.shape == self._shape(name)
        if not fits:
            raise PassError(
                f"the state {key!r} of {name!r} is no tensor of the parameter's shape "
                f"{tuple(self._shape(name))}, so that it is not known how to cut it"
            )
        for each in maps:
            part = part.index_select(each.axis, torch.tensor(each.kept, device=part.device))
        if part.shape != self.after[name].shape:
            raise ShapeError(f"the state {key!r} of {name!r} does not become of the new shape")
        return part if maps else part.clone(memory_format=torch.preserve_format)

    def _shape(self, name: str) -> torch.Size:
        """Return the shape of a parameter before the shrinks, though it was cut in place since."""
        before = {each.axis: each.before for each in self.maps.get(name, [])}
        return torch.Size([before.get(at, n) for at, n in enumerate(self.after[name].shape)])


def _records(program: Program, before: nn.Module) -> tuple[ShrinkRecord, ...]:
    """Return the shrinks between two states of a Program, oldest first."""
    shrinks = program.captured.shrinks
    if not shrinks:
        raise PassError("the program was not shrunk, so that there is nothing to carry over")
    if before is program:
        return shrinks[-1:]
    done = len(before.captured.shrinks) if isinstance(before, Program) else 0
    return shrinks[done:]


def _maps_by_tensor(records: Sequence[ShrinkRecord]) -> dict[str, list[AxisMap]]:
    """Return what stays of each axis after all of some shrinks, by the tensor's name."""
    found: dict[str, list[AxisMap]] = {}
    for each in joined_record(records).maps if records else ():
        found.setdefault(each.tensor, []).append(each)
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name without a mask's suffix, Parameter), each parameter under its first name."""
    if isinstance(model, Program):
        for name in parameters.aliases(model):
            found = raw_parameter(*parameters.owner(model, name))
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


_VERSION = 1
# Arguments that count channels, and that a module keeps beside its weights.
_COUNTS = ("groups", "num_groups")


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Cut(_StrictModel):
    """A tensor that was cut: its shapes, and the old indices that stayed along each axis cut."""

    before: list[int]
    after: list[int]
    kept: dict[str, list[int]] = Field(default_factory=dict[str, list[int]])


class _Delta(_StrictModel):
    """What changed between the source and the shrunk Program."""

    version: int
    cut: dict[str, _Cut]
    added: dict[str, list[int]]
    removed: list[str]
    settings: dict[str, dict[str, int]]


def shape_delta(program: Program) -> dict[str, Any]:
    """Return what shrinks changed of a Program's tensors, as data that JSON can hold.

    Args:
        program: a shrunk Program; of one that was not shrunk, nothing changed.

    Returns:
        "cut": by name, the shapes before and after, and the old indices that stayed, by axis;
        "added": biases that there were none of, with their shapes; "removed": names that are gone;
        "settings": by module, arguments as `groups` that count channels.

    Raises:
        PassTypeError: no Program was given.
        PassError: the Program has masks; its keys are not the source's until it is finalized.

    Example:
        >>> from fxprune.compiler import capture
        >>> shape_delta(capture(nn.Linear(3, 2), (torch.zeros(2, 3),)))["cut"]
        {}
    """
    check_program(program, "shape_delta")
    if program.masks:
        raise PassError("the program has masks; finalize it, so that its keys are the source's")
    maps, names = _maps_by_tensor(program.captured.shrinks), parameters.aliases(program)
    added = {name for record in program.captured.shrinks for name in record.added}
    cut = {
        alias: _cut_of(tensor.shape, axes)
        for name, axes in maps.items()
        if name not in added
        for alias in names.get(name, (name,))
        if (tensor := _tensor(program, alias)) is not None
    }
    removed = [name for record in program.captured.shrinks for name in record.removed]
    biases = {name: _tensor(program, name) for name in sorted(added - set(removed))}
    delta = _Delta(
        version=_VERSION,
        cut=cut,
        added={name: [] if bias is None else list(bias.shape) for name, bias in biases.items()},
        removed=removed,
        settings=_counts_by_module(program) if program.captured.shrinks else {},
    )
    return delta.model_dump()


def _tensor(program: Program, name: str) -> torch.Tensor | None:
    if name in program.captured.first:
        return raw_parameter(*parameters.owner(program, name))
    path, _, attribute = name.rpartition(".")
    return program.get_submodule(path)._buffers.get(attribute)


def _cut_of(after: torch.Size, maps: Sequence[AxisMap]) -> _Cut:
    before = list(after)
    for each in maps:
        before[each.axis] = each.before
    kept = {str(each.axis): list(each.kept) for each in maps}
    return _Cut(before=before, after=list(after), kept=kept)


def _counts_by_module(program: Program) -> dict[str, dict[str, int]]:
    """Return the arguments that count channels, by the module whose parameter is read there."""
    found: dict[str, dict[str, int]] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            weight = ops.argument(node, "weight") if ops.has_role(node, "weight") else None
            name = parameter_of(program, weight)
            for role in _COUNTS:
                if name is None or not ops.has_role(node, role):
                    continue
                count = ops.argument(node, role)
                if isinstance(count, int) and count > 1:
                    for alias in parameters.aliases(program)[name]:
                        found.setdefault(alias.rpartition(".")[0], {})[role] = count
    return found


# Into the source's class


def apply_delta(model: nn.Module, delta: Mapping[str, Any]) -> nn.Module:
    """Resize an instance of the source's class, in place, so that shrunk weights load into it.

    Tensors keep the values of the channels that stayed. Modules of torch.nn are told their new
    sizes (`out_channels`, `num_features`, `groups`, ...). The model runs where its forward does
    not itself name sizes that changed, as `view(-1, 400)` does.

    Args:
        model: an instance of the class that was captured, of the sizes that were captured.
        delta: what `shape_delta` returned, perhaps read from JSON.

    Raises:
        FormatError: the delta is none, or it is of another class's shapes; the model is as it was.

    Example:
        >>> from fxprune.compiler import capture
        >>> delta = shape_delta(capture(nn.Linear(3, 2), (torch.zeros(2, 3),)))
        >>> apply_delta(nn.Linear(3, 2), delta)
        Linear(in_features=3, out_features=2, bias=True)
    """
    found = _read(delta)
    if found.removed:
        raise FormatError(
            f"the shrink folded {parameters.quote(found.removed)} away, and the class's forward "
            "still reads it; export the Program instead"
        )
    resized = {name: _resize(model, name, cut) for name, cut in found.cut.items()}
    owners = {name: _owner(model, name) for name in found.added}
    made: dict[int, nn.Parameter] = {}
    for name, tensor in resized.items():
        owner, attribute = _owner(model, name)
        old = owner._parameters.get(attribute)
        if old is None:
            owner._buffers[attribute] = tensor
        else:  # tied parameters stay one
            new = made.setdefault(id(old), nn.Parameter(tensor, requires_grad=old.requires_grad))
            owner._parameters[attribute] = new
    for name, (owner, attribute) in owners.items():
        like = next(owner.parameters(recurse=False), torch.zeros(0))
        bias = torch.zeros(found.added[name], dtype=like.dtype, device=like.device)
        owner._parameters[attribute] = nn.Parameter(bias)
    changed = {name.rpartition(".")[0] for name in (*resized, *owners)}
    for path in changed:
        module = model.get_submodule(path)
        for key, count in found.settings.get(path, {}).items():
            if hasattr(module, key):
                setattr(module, key, count)
        for key, size in _sizes_of(module):  # it reads the new `groups`
            setattr(module, key, size)
    return model


def _read(delta: Any) -> _Delta:
    try:
        found = _Delta.model_validate(delta)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}" if place else "this is no delta, which is a table"
        raise FormatError(f"{fault}; give what shape_delta returned") from None
    if found.version != _VERSION:
        raise FormatError(f"version {found.version} of shape deltas is not known; it is {_VERSION}")
    return found


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    try:
        return model.get_submodule(path), attribute
    except AttributeError as error:
        raise FormatError(f"the model has no {path!r}; give the class that was captured") from error


def _resize(model: nn.Module, name: str, cut: _Cut) -> torch.Tensor:
    owner, attribute = _owner(model, name)
    held = {**owner._parameters, **owner._buffers}.get(attribute)
    if held is None:
        raise FormatError(f"the model has no tensor {name!r}; give the class that was captured")
    if list(held.shape) != cut.before:
        raise FormatError(
            f"{name!r} has shape {tuple(held.shape)}, and the source's was {tuple(cut.before)}; "
            "give an instance of the sizes that were captured"
        )
    tensor = held.detach()
    for axis, kept in cut.kept.items():
        index = torch.tensor(kept, dtype=torch.long, device=tensor.device)
        tensor = tensor.index_select(int(axis), index)
    if list(tensor.shape) != cut.after:
        raise FormatError(f"the indices kept of {name!r} do not give its shape {cut.after}")
    return tensor.clone()


def _sizes_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a layer of torch.nn that say how large its tensors are."""
    weight = module._parameters.get("weight")
    mean = module._buffers.get("running_mean")
    vector = weight if weight is not None else mean
    if vector is None:
        return
    shape = vector.shape
    if isinstance(module, nn.Linear):
        yield from zip(("out_features", "in_features"), shape, strict=True)
    elif isinstance(module, nn.modules.conv._ConvNd):
        groups = module.groups
        first, second = shape[0], shape[1] * groups
        into, out = (first, second) if module.transposed else (second, first)
        yield from (("in_channels", into), ("out_channels", out))
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        yield "num_features", shape[0]
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        yield "normalized_shape", tuple(shape)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield from zip(("num_embeddings", "embedding_dim"), shape, strict=True)
    elif isinstance(module, nn.PReLU):
        yield "num_parameters", shape[0]
