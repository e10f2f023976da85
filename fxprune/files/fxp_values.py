"""Constants of graphs as JSON and back: what is plain stays plain, the rest has a tag.

A text alone is the name of a node, since that is the common case; a text constant has a tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.fx.node import Node

from fxprune.errors import FormatError

__all__ = ["decode_dtype", "decode_value", "encode_dtype", "encode_value"]

_MOST_LEVELS = 16
_LARGEST = 2**64
_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,4})?")
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_NAMED = {
    tag: {
        str(found).removeprefix("torch."): found
        for found in vars(torch).values()
        if type(found) is kind
    }
    for tag, kind in _KINDS.items()
}


def encode_value(value: Any) -> Any:
    """Return a value as JSON data.

    Args:
        value: a node, a constant of torch or Python, or tuples, lists, dicts and slices of these.

    Raises:
        FormatError: it is none of these.

    Example:
        >>> encode_value((1, [2.5, None], torch.float16, float("inf")))
        {'tuple': [1, [2.5, None], {'dtype': 'float16'}, {'float': 'inf'}]}
    """
    if isinstance(value, Node):
        return value.name
    if value is None or type(value) in (bool, int):
        return _whole(value)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) is str:
        return {"str": value}
    if isinstance(value, (tuple, list, dict, slice)):
        return _encode_nest(cast("Any", value))
    if type(value) is complex:
        return {"complex": [encode_value(value.real), encode_value(value.imag)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is ...:
        return {"ellipsis": True}
    for tag, kind in _KINDS.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    raise FormatError(f"a {type(value).__name__} cannot be written to a .fxp")


def decode_value(data: Any, node: Callable[[str], Node] | None = None) -> Any:
    """Return the value that `encode_value` made `data` of.

    Args:
        data: from a file.
        node: finds a node by its name; None where no node may stand.

    Raises:
        FormatError: it is of no such kind.

    Example:
        >>> decode_value({"tuple": [1, {"str": "x"}, {"slice": [None, 2, None]}]})
        (1, 'x', slice(None, 2, None))
    """
    return _decode(data, node, _MOST_LEVELS)


def encode_dtype(dtype: torch.dtype) -> str:
    """Return a dtype's name, as `float32`."""
    return str(dtype).removeprefix("torch.")


def decode_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        FormatError: there is none.
    """
    return _named("dtype", name)


def _whole(value: int | None) -> int | None:
    if value is not None and abs(value) >= _LARGEST:
        raise FormatError("a whole number of more than 64 bits cannot be written to a .fxp")
    return value


def _encode_nest(value: Any) -> Any:
    if isinstance(value, slice):
        return {"slice": [encode_value(x) for x in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {"dict": [[encode_value(key), encode_value(part)] for key, part in pairs]}
    if hasattr(value, "_fields"):
        raise FormatError(f"a {type(value).__name__} cannot be written to a .fxp")
    parts = [encode_value(part) for part in value]
    if isinstance(value, torch.Size):
        return {"size": parts}
    return {"tuple": parts} if isinstance(value, tuple) else parts


def _decode(data: Any, node: Callable[[str], Node] | None, levels: int) -> Any:
    if levels == 0:
        raise FormatError(f"values are nested deeper than {_MOST_LEVELS} levels")
    if data is None or type(data) in (bool, float):
        return data
    if type(data) is int:
        return _whole(data)
    if type(data) is str:
        if node is None:
            raise FormatError(f"a node's name, {_shown(data)}, where a constant goes")
        return node(data)
    if type(data) is list:
        return [_decode(part, node, levels - 1) for part in cast("list[Any]", data)]
    if type(data) is not dict or len(cast("dict[Any, Any]", data)) != 1:
        raise FormatError("a value is a table with one tag")
    [(tag, inside)] = cast("dict[str, Any]", data).items()
    if tag in ("tuple", "size", "slice", "dict", "complex"):
        if type(inside) is not list:
            raise FormatError(f"a {tag} is written as a list")
        return _decode_nest(tag, cast("list[Any]", inside), node, levels)
    return _decode_tagged(tag, inside)


def _decode_nest(
    tag: str, inside: list[Any], node: Callable[[str], Node] | None, levels: int
) -> Any:
    parts = [_decode(part, node, levels - 1) for part in inside]
    if tag == "tuple":
        return tuple(parts)
    if tag == "size" and all(type(part) is int and 0 <= part < 2**63 for part in parts):
        return torch.Size(parts)
    if tag == "slice" and len(parts) == 3:
        return slice(*parts)
    if tag == "dict" and all(type(pair) is list and len(pair) == 2 for pair in parts):
        return _dict(parts)
    if tag == "complex" and len(parts) == 2 and all(type(part) is float for part in parts):
        return complex(*parts)
    raise FormatError(f"no {tag} is written like this")


def _dict(pairs: list[list[Any]]) -> dict[Any, Any]:
    keys = [pair[0] for pair in pairs]
    if not all(key is None or type(key) in (str, int, bool, float) for key in keys):
        raise FormatError("the keys of a dict are texts and numbers")
    found = dict(map(tuple, pairs))
    if len(found) < len(pairs):
        raise FormatError("a dict has one key twice")
    return found


def _decode_tagged(tag: str, inside: Any) -> Any:
    if tag == "ellipsis" and inside is True:
        return ...
    if type(inside) is not str:
        raise FormatError(f"unknown value with the tag {_shown(tag)}")
    if tag == "str":
        return inside
    if tag == "float" and inside in ("nan", "inf", "-inf"):
        return float(inside)
    if tag == "device":
        return _device(inside)
    if tag in _NAMED:
        return _named(tag, inside)
    raise FormatError(f"unknown value with the tag {_shown(tag)}")


def _device(name: str) -> torch.device:
    try:
        if _DEVICE.fullmatch(name):
            return torch.device(name)
    except RuntimeError:
        pass
    raise FormatError(f"torch knows no device {_shown(name)}")


def _named(tag: str, name: str) -> Any:
    if name not in _NAMED[tag]:
        raise FormatError(f"torch knows no {tag} {_shown(name)}")
    return _NAMED[tag][name]


def _shown(text: str) -> str:
    return ascii(text[:60])
