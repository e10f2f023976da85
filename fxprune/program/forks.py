"""All or nothing: edits are made on a fork, which a Program then becomes by swapping references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from fxprune.errors import InvariantError, PassError
from fxprune.program.program import Program
from fxprune.program.spread import check_root_alone, is_sharded, is_wrapped, part, reshard, swaps_of

_MODULE_STATE = ("_parameters", "_buffers")
_PROGRAM_STATE = ("graphs", "captured")


def fork(program: Program) -> Program:
    """Return a Program with its own tree and graphs, over the same tensors."""
    check_root_alone(program)
    reshard(program)
    tensors = (*program.parameters(), *program.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    if is_wrapped(program):
        # fully_shard's class refuses deepcopy, which would copy the wrapping.
        return Program.__deepcopy__(program, memo)
    return copy.deepcopy(program, memo)


def copied(program: Program) -> Program:
    """Return a deep copy; one that FSDP2 has wrapped cannot be copied, which raises PassError."""
    if is_wrapped(program):
        raise PassError("a Program that fully_shard has wrapped cannot be copied; say inplace=True")
    return copy.deepcopy(program)


def commit(program: Program, work: Program) -> None:
    """Let a Program become its edited fork; its modules and Parameter objects stay the same ones.

    The fork is not to be used afterwards. An exception in here, Ctrl-C included, takes back what
    was swapped.
    """
    swaps = _swaps(program, work)
    undo: list[Callable[[], None]] = []
    try:
        for target, key, value in swaps:
            undo.append(_restoring(target, key))
            _assign(target, key, value)
        program._take_code(work)
    except BaseException:
        for restore in reversed(undo):
            restore()
        program.recompile()
        raise


def _swaps(program: Program, work: Program) -> list[tuple[Any, str, Any]]:
    """List (object, attribute, new value) for all that the fork has changed."""
    replaced, work.captured.replaced = work.captured.replaced, []
    kept = {id(new): old for old, new in replaced}
    edited = dict(work.named_modules())
    # A gradient of another shape would fit no longer.
    swaps: list[tuple[Any, str, Any]] = [
        (old, "grad", None) for old, new in replaced if old.shape != new.shape
    ]
    swaps += [_value_swap(old, new) for old, new in replaced]
    for path, module in program.named_modules():
        if path not in edited:
            raise InvariantError(f"the edited program lost the module {path!r}")
        for key in _MODULE_STATE:
            items = vars(edited[path])[key].items()
            swaps.append((module, key, {name: kept.get(id(t), t) for name, t in items}))
    held = {module: new for module, key, new in swaps if key == "_parameters"}
    values = {id(old): part(new) for old, new in replaced}
    swaps += swaps_of(program, held, values)
    swaps += [(program, key, vars(work)[key]) for key in _PROGRAM_STATE]
    return swaps


def _value_swap(old: Any, new: Any) -> tuple[Any, str, Any]:
    # A DTensor keeps its values in a tensor of its own, which `data` does not reach.
    return (old, "_local_tensor", part(new)) if is_sharded(old) else (old, "data", new.data)


def _assign(target: Any, key: str, value: Any) -> None:
    if isinstance(target, nn.Module):
        target.__dict__[key] = value
    else:
        setattr(target, key, value)


def _restoring(target: Any, key: str) -> Callable[[], None]:
    old = target.__dict__[key] if isinstance(target, nn.Module) else getattr(target, key)
    return lambda: _assign(target, key, old)
