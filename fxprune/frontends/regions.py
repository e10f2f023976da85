"""Find the largest submodules that torch.export takes, where it does not take the whole model.

What a run of a model's example calls: the inputs of its submodules, and the reads outside.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import CaptureError, InputError
from fxprune.frontends.batch import Batched, exact
from fxprune.frontends.module import capture_source, obstacle_in
from fxprune.program import (
    Arguments,
    Obstacle,
    Program,
    can_be_part,
    check_names,
    copy_model,
    forward_of,
    normal,
    twins,
    with_flags,
)
from fxprune.verification import Holder, reproducible

_MOST_ALIKE = 4  # calls of one module with the same shapes and constants that are kept


@dataclass(frozen=True)
class RegionCall:
    """One call of a submodule.

    Args:
        args: positional inputs, copied before the module could write to them.
        kwargs: keyword inputs, likewise.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """The values without their nesting."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def tree(self) -> pytree.TreeSpec:
        """The nesting."""
        return pytree.tree_structure((self.args, self.kwargs))

    def looks_like(self) -> str:
        """Return nesting, shapes and constants as text, equal for calls that are alike."""
        shown = [
            f"{x.dtype}{list(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
            for x in self.leaves
        ]
        return f"{self.tree} {shown} {twins(self.leaves)}"


def copied(values: Any) -> Any:
    """Copy the tensors of nested values, without their history; the same one is copied once."""
    memo: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]

    return pytree.tree_map_only(torch.Tensor, copy, values)


def ran(model: nn.Module, arguments: Arguments, *, training: bool) -> bool:
    """Run a private copy of a model; return whether it raised nothing.

    Args:
        model: a private copy; its buffers change.
        arguments: `(args, kwargs)`, not changed.
        training: the training flag of all its modules.
    """
    args, kwargs = copied(arguments)
    try:
        with with_flags(model, training), reproducible(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(*args, **kwargs)
    except Exception:  # noqa: BLE001 - forward may raise anything
        return False
    return True


def recorded_calls(source: nn.Module, examples: Iterable[Arguments]) -> dict[str, list[RegionCall]]:
    """Run copies of a model on each example in both modes, and return the calls of submodules.

    Args:
        source: not changed.
        examples: `(args, kwargs)`; one that the model does not take is passed over.

    Returns:
        By the first path of each submodule, its calls in order; keyword inputs are made positional
        where the signature allows, and those that equal their default left out.
    """
    calls: dict[str, list[RegionCall]] = {}
    for arguments in examples:
        for training in (True, False):
            model = copy_model(source)
            seen: dict[str, list[RegionCall]] = {}
            with ExitStack() as stack:
                for path, module in model.named_modules():
                    plain = not module._forward_pre_hooks
                    keep = _keeper(seen.setdefault(path, []), plain=plain)
                    hook = module.register_forward_pre_hook(keep, prepend=True, with_kwargs=True)
                    stack.callback(hook.remove)
                whole = ran(model, arguments, training=training)
            for path, found in seen.items():
                calls.setdefault(path, []).extend(found if whole else ())
    return calls


def _keeper(calls: list[RegionCall], *, plain: bool) -> Callable[..., None]:
    alike: Counter[str] = Counter()

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = RegionCall(*(normal(module, args, kwargs) if plain else (args, kwargs)))
        alike[call.looks_like()] += 1
        if alike[call.looks_like()] <= _MOST_ALIKE:
            calls.append(RegionCall(*copied((call.args, call.kwargs))))

    return keep


def parameters_read(
    source: nn.Module, inside: Iterable[str], examples: Iterable[Arguments]
) -> set[str]:
    """Return the names of the parameters that operators read outside of some submodules.

    Args:
        source: not changed.
        inside: paths of the submodules whose own reads do not count.
        examples: `(args, kwargs)`.
    """
    found: set[str] = set()
    paths = tuple(inside)
    for arguments in examples:
        for training in (True, False):
            model = copy_model(source)
            reads = _Reads({id(p): name for name, p in model.named_parameters()})
            with _counting([model.get_submodule(path) for path in paths], reads), reads:
                ran(model, arguments, training=training)
            found |= reads.found
    return found


class _Reads(TorchDispatchMode):
    """Notes the parameters among the arguments of operators, while `depth` is 0."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.depth = 0
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.depth == 0:
            leaves = pytree.tree_leaves((args, kwargs))
            self.found.update(self.names[id(x)] for x in leaves if id(x) in self.names)
        return func(*args, **(kwargs or {}))


@contextmanager
def _counting(modules: list[nn.Module], reads: _Reads) -> Generator[None]:
    def enter(*_: Any) -> None:
        reads.depth += 1

    def leave(*_: Any) -> None:
        reads.depth -= 1

    with ExitStack() as stack:
        for module in modules:
            hooks = (
                module.register_forward_pre_hook(enter, prepend=True),
                module.register_forward_hook(leave, always_call=True),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        yield


@dataclass(frozen=True)
class Found:
    """A captured submodule.

    Args:
        program: its Program, with names of its own.
        twins: which inputs were the same tensor in all calls, see `regional.twins`; empty
            where that differs among them, and the graph does not rely on it.
    """

    program: Program
    twins: tuple[int, ...]


@dataclass
class Finder:
    """Walks a model from the top and captures what can be captured.

    Args:
        source: a private copy of the model; not changed.
        calls: the recorded calls by submodule, see `recorded_calls`.

    Attributes:
        found: the captured submodules, by name.
        kept: the modules that stay Python code, by name, and the line that is in the way; None
            where the example did not call the module.
    """

    source: nn.Module
    calls: dict[str, list[RegionCall]]
    found: dict[str, Found] = field(default_factory=dict[str, Found])
    kept: dict[str, Obstacle | None] = field(default_factory=dict[str, Obstacle | None])

    def __post_init__(self) -> None:
        self._paths = {id(module): path for path, module in self.source.named_modules()}
        self._seen: set[int] = set()

    def descend(self, path: str, module: nn.Module, obstacle: Obstacle | None) -> None:
        """Capture the children of a module that is not captured itself, or descend further.

        Args:
            path: its name.
            module: the module, in `source`.
            obstacle: why it is not captured.
        """
        self.kept[path] = obstacle
        for name, child in module.named_children():
            if id(child) in self._seen or next(child.parameters(), None) is None:
                continue
            self._seen.add(id(child))
            inner = f"{path}.{name}" if path else name
            result = self._capture(child)
            if isinstance(result, Found):
                self.found[inner] = result
            else:
                self.descend(inner, child, result)

    def _capture(self, module: nn.Module) -> Found | Obstacle | None:
        calls = self.calls.get(self._paths[id(module)])
        if not calls:
            return None
        if not can_be_part(module):
            return Obstacle("its code is compiled or traced", *forward_of(module))
        private = copy_model(module)
        try:
            check_names(module, type(module).__name__)
            example = _example(private, calls)
            program = capture_source(private, [example])
        except CaptureError as error:
            return obstacle_in(module, error)
        wrong = first_difference(module, program, calls)
        if wrong is not None:
            return Obstacle(wrong, *forward_of(module))
        return Found(program, twins(calls[0].leaves) if _are_alike(calls) else ())


def _example(module: nn.Module, calls: list[RegionCall]) -> Batched:
    """Return the recorded call to capture with; sizes that differ among the calls are dynamic."""
    first = calls[0]
    alike = [call for call in calls if call.tree == first.tree and _ranks(call) == _ranks(first)]
    dims = [_varying([call.leaves[i] for call in alike]) for i in range(len(first.leaves))]
    best = max(alike, key=lambda call: _smallest(call, dims))
    args, kwargs = copied((best.args, best.kwargs))
    if not _are_alike(calls):
        args, kwargs = pytree.tree_map(copied, (args, kwargs))
    # torch.export takes a size of 0 or 1 for a constant.
    sizes = zip(pytree.tree_leaves((args, kwargs)), dims, strict=True)
    return exact(module, args, kwargs, [[d for d in at if x.shape[d] > 1] for x, at in sizes])


def _are_alike(calls: list[RegionCall]) -> bool:
    """Tell whether the same inputs are one tensor in all calls; a graph may rely on that."""
    return len({twins(call.leaves) for call in calls}) == 1


def _ranks(call: RegionCall) -> list[int | None]:
    return [x.dim() if isinstance(x, torch.Tensor) else None for x in call.leaves]


def _varying(leaves: list[Any]) -> list[int]:
    if not isinstance(leaves[0], torch.Tensor):
        return []
    return [d for d in range(leaves[0].dim()) if len({leaf.shape[d] for leaf in leaves}) > 1]


def _smallest(call: RegionCall, dims: list[list[int]]) -> int:
    sizes = [leaf.shape[d] for leaf, at in zip(call.leaves, dims, strict=True) for d in at]
    # More than 2 says no more, and an earlier call is the better known one.
    return min(2, *sizes) if sizes else 2


def first_difference(module: nn.Module, program: Program, calls: list[RegionCall]) -> str | None:
    """Say where a Program is not right for calls of what it was captured from; None where it is.

    Args:
        module: the source; not changed.
        program: as captured; not changed.
        calls: run in order in each mode; one that the source does not take is passed over.
    """
    # A module without parts runs its own code for calls that its graph does not take.
    is_leaf = all(next(child.parameters(), None) is None for child in module.children())
    for training in (True, False):
        ours, theirs = copy_model(program), copy_model(module)
        again = copy_model(module)
        for call in calls:
            arguments = (call.args, call.kwargs)
            found = _outcome(ours, arguments, training)
            if is_leaf and isinstance(found, InputError):
                continue
            wanted = _outcome(theirs, arguments, training)
            if isinstance(wanted, Exception):
                continue
            if _difference(_outcome(again, arguments, training), wanted) is not None:
                return "it does not compute the same twice from one seed"
            if isinstance(found, Exception):
                return f"its graph does not take each call that the example makes: {found}"
            text = _difference(found, wanted)
            if text is not None:
                return f"its graph differs from its code: {text}"
        buffers = dict(ours.named_buffers())
        for name, value in theirs.named_buffers():
            if _difference(buffers[name], value) is not None:
                return f"its graph writes other values into the buffer {name!r}"
    return None


def _outcome(module: nn.Module, arguments: Any, training: bool) -> Any:
    args, kwargs = copied(arguments)
    try:
        with with_flags(module, training), reproducible(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _detached(module(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - what the module raises for a call is a result
        return error


def _detached(values: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, values)


def _difference(after: Any, before: Any) -> str | None:
    """Return how two outputs differ, bit for bit; None where they do not."""
    found = Holder(None).nests("output", after, before)
    return next((f"{d.where} {d.text}" for d in found if d.text), None)
