"""Calls of torch's functions and methods, as symbolic_trace records them, to aten operators.

A traced call has no types: `torch.add(x, y)` may add a tensor or a number. A call becomes an
operator only where one overload alone can be meant; else it stays the function that it is, as those
of torch.nn.functional do, whose signatures name their arguments.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx.node import Node
from torch.nn.utils.rnn import PackedSequence

from fxprune.program import ops

aten = torch.ops.aten
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009 - torch's stubs leave it out

# What to call, and with which positional arguments.
Call = tuple[Any, tuple[Any, ...]]

_OTHERS = (torch.Size, tuple, list, dict, str, int, float, bool, slice, PackedSequence)


def lower_function(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the operator call that a function call means; None where that is not certain.

    Args:
        target: the function.
        args: its positional arguments; nodes stand for values.
        kwargs: its keyword arguments.
    """
    name = getattr(target, "__name__", "")
    is_torch = target in (getattr(torch, name, None), getattr(_nn, name, None))
    if not is_torch or not isinstance(target, types.BuiltinFunctionType):
        return None
    return _only_overload(name, args, kwargs)


def lower_method(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the call that a method call means; None where its object may be no tensor.

    Args:
        name: the method.
        args: the object and the positional arguments.
        kwargs: the keyword arguments.
    """
    method = getattr(torch.Tensor, name, None)
    if not isinstance(method, types.MethodDescriptorType):
        return None
    if any(hasattr(kind, name) for kind in _OTHERS):
        return None
    given = len(args)
    numbers = given > 2 or (given == 2 and type(args[1]) is int)
    packed: tuple[Any, ...] = args
    if numbers and name in _VARIADIC:
        owner, *sizes = args
        packed = (owner, sizes)
    found = _only_overload(name, packed, kwargs)
    if found is not None:
        return found
    return None if kwargs else (method, args)


# Methods that take a list of numbers as well as the numbers.
_VARIADIC = frozenset({"view", "reshape", "permute", "expand", "repeat", "flip", "tile"})


def _aten_call(target: Any, *args: Any) -> Call | None:
    """Return a call in the form of torch.export: lists for tuples, no trailing defaults.

    None where a list of numbers is not known, since the operator takes no single number there.
    """
    schema = ops.schema_arguments(target)
    plain: list[Any] = []
    for argument, value in zip(schema, args, strict=False):
        if not _fits(argument, value):
            return None
        plain.append(_listed(argument, value))
    while plain and _is_default(schema[len(plain) - 1], plain[-1]):
        plain.pop()
    return target, tuple(plain)


def _listed(argument: Any, value: Any) -> Any:
    """Return the list that a number stands for where the operator takes a list."""
    if type(value) is int and _kind(argument).startswith("List["):
        return [value] * argument.N
    return list(value) if isinstance(value, (list, tuple)) else value


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value() or isinstance(value, Node):
        return False
    default = argument.default_value
    if type(default) is int and isinstance(value, list):
        return value == [default] * len(value)  # pyright: ignore[reportUnknownArgumentType]
    return type(value) is type(default) and value == default


def _kind(argument: Any) -> str:
    kind = str(argument.real_type)
    return kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Opt") else kind


def _only_overload(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Return the call of the one overload of an operator that takes these arguments."""
    packet = getattr(aten, name, None)
    if packet is None or not args or not _is_tensor(args[0]):
        return None
    # Convolutions take numbers or a word for the padding; without any both mean the same.
    keys = [key for key in packet.overloads() if key != "padding" or _has_word(args, kwargs)]
    fits = [
        call
        for overload in (getattr(packet, key) for key in keys)
        for bound in _bound(overload, args, kwargs)
        if (call := _aten_call(overload, *bound)) is not None
    ]
    return fits[0] if len(fits) == 1 else None


def _has_word(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) for value in (*args, *kwargs.values()))


def _is_tensor(arg: Any) -> bool:
    if isinstance(arg, (list, tuple)):
        return all(isinstance(part, Node) for part in arg)
    return isinstance(arg, Node)


def _bound(overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the positional arguments of an overload, if the call fits its schema."""
    schema = overload._schema
    # A method or function may return a named tuple or a tuple where the operator has another.
    if [str(part.type) for part in schema.returns] != ["Tensor"]:
        return
    names = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    given = {
        ("self" if key == "input" and key not in names else key): kwargs[key] for key in kwargs
    }
    if len(args) > len(names) or not given.keys() <= set(names[len(args) :]):
        return
    if any(a.kwarg_only and not a.has_default_value() for a in schema.arguments):
        return
    bound = list(args)
    for argument in schema.arguments[len(args) : len(names)]:
        if argument.name not in given and not argument.has_default_value():
            return
        bound.append(given.get(argument.name, argument.default_value))
    yield bound


def _fits(argument: Any, value: Any) -> bool:
    """Tell whether an argument of a schema takes a value; a node is a tensor, number or flag."""
    if value is None:
        return str(argument.real_type).startswith("Optional[")
    kind = _kind(argument)
    if not kind.startswith("List["):
        return _is_a(kind, value)
    if type(value) is int:
        return kind == "List[int]" and argument.N is not None
    inside = kind.removeprefix("List[").removesuffix("]")
    return isinstance(value, (list, tuple)) and all(_is_a(inside, part) for part in value)


def _is_a(kind: str, value: Any) -> bool:
    if isinstance(value, Node):
        return kind in ("Tensor", "int", "SymInt", "float", "number", "bool")
    accepted = _ACCEPTED.get(kind)
    return accepted is not None and type(value) in accepted


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "SymInt": (int,),
    "float": (float, int),
    "number": (float, int, bool, complex),
    "bool": (bool,),
    "str": (str,),
    "ScalarType": (torch.dtype,),
}
