"""What a run of a model's example calls: the inputs of its submodules, and the reads outside."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.source import copy_model, with_flags
from fxprune.trials import reproducible

__all__ = [
    "Arguments",
    "Call",
    "copied",
    "normal",
    "parameters_read",
    "ran",
    "recorded_calls",
    "twins",
]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_MOST_ALIKE = 4  # calls of one module with the same shapes and constants that are kept


@dataclass(frozen=True)
class Call:
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


def twins(leaves: Sequence[Any]) -> tuple[int, ...]:
    """Return for each leaf the place of the first one that is the same tensor.

    Code may ask for that, as attention does for its query and key, and then a graph relies on it.
    """
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(id(leaf), i) if isinstance(leaf, torch.Tensor) else i
        for i, leaf in enumerate(leaves)
    )


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


def recorded_calls(source: nn.Module, examples: Iterable[Arguments]) -> dict[str, list[Call]]:
    """Run copies of a model on each example in both modes, and return the calls of submodules.

    Args:
        source: not changed.
        examples: `(args, kwargs)`; one that the model does not take is passed over.

    Returns:
        By the first path of each submodule, its calls in order; keyword inputs are made positional
        where the signature allows, and those that equal their default left out.
    """
    calls: dict[str, list[Call]] = {}
    for arguments in examples:
        for training in (True, False):
            model = copy_model(source)
            seen: dict[str, list[Call]] = {}
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


def _keeper(calls: list[Call], *, plain: bool) -> Callable[..., None]:
    alike: Counter[str] = Counter()

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(*(normal(module, args, kwargs) if plain else (args, kwargs)))
        alike[call.looks_like()] += 1
        if alike[call.looks_like()] <= _MOST_ALIKE:
            calls.append(Call(*copied((call.args, call.kwargs))))

    return keep


def normal(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Return the arguments of a call in one form for all ways to write the same call."""
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, dict(kwargs)
    for name, value in list(bound.arguments.items()):
        if _is_default(value, signature.parameters[name]):
            del bound.arguments[name]
    return bound.args, bound.kwargs


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    default = parameter.default
    plain = value is None or isinstance(value, (bool, int, float, str))
    return plain and type(value) is type(default) and value == default


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
