"""Nestings as JSON and back. A class is named, and must be there already: none is imported.

The exception is a short list of modules that only define outputs of Hugging Face models.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import OrderedDict, deque, namedtuple
from typing import Any, cast

from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.nesting import Nesting
from fxprune.saved_values import decode_value, encode_value

__all__ = ["decode_nesting", "encode_nesting"]

_made_up: Any = namedtuple
_LEAF = "*"
_MOST_LEVELS = 32
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "list": list}
_MAPPINGS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict}
_TAGS = {kind: tag for tag, kind in (_SEQUENCES | _MAPPINGS).items()}
# Importing these defines classes and does nothing else.
_IMPORTED = ("transformers.modeling_outputs", "transformers.cache_utils")


def encode_nesting(nesting: Nesting) -> Any:
    """Return a nesting as JSON data.

    Raises:
        FormatError: it holds a class that cannot be named, or whose description is no plain data.

    Example:
        >>> encode_nesting(Nesting(({"a": 0}, [1, 2])))
        {'tuple': [{'dict': [[{'str': 'a'}, '*']]}, {'list': ['*', '*']}]}
    """
    return _encode(nesting.tree)


def decode_nesting(data: Any) -> Nesting:
    """Return the nesting that `encode_nesting` made `data` of.

    Raises:
        FormatError: it is none, or of a class that is not there.

    Example:
        >>> decode_nesting({"tuple": ["*", {"list": ["*"]}]}).unflatten("xy")
        ('x', ['y'])
    """
    return Nesting(_decode(data, _MOST_LEVELS))


def _encode(tree: pytree.TreeSpec) -> Any:
    if tree.type is None:
        return _LEAF
    parts = [_encode(child) for child in tree.children()]
    tag = _TAGS.get(tree.type)
    if tag in _SEQUENCES:
        return {tag: parts}
    if tag in _MAPPINGS:
        keys = [encode_value(key) for key in tree.context]
        return {tag: [list(pair) for pair in zip(keys, parts, strict=True)]}
    if tree.type is deque:
        return {"deque": [encode_value(tree.context), parts]}
    if tree.type is namedtuple:
        kind = tree.context
        return {"namedtuple": [_name(kind), list(kind._fields), parts]}
    try:
        return {"class": [_name(tree.type), encode_value(tree.context), parts]}
    except FormatError as error:
        raise FormatError(f"{_name(tree.type)} in the arguments or outputs: {error}") from error


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _decode(data: Any, levels: int) -> Any:
    if data == _LEAF and type(data) is str:
        return 0
    if levels == 0:
        raise FormatError(f"nested deeper than {_MOST_LEVELS} levels")
    if type(data) is not dict or len(cast("dict[Any, Any]", data)) != 1:
        raise FormatError("a nesting is '*' or a table with one tag")
    [(tag, inside)] = cast("dict[str, Any]", data).items()
    if type(inside) is not list:
        raise FormatError("what a nesting holds is a list")
    parts = cast("list[Any]", inside)
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](_decode(part, levels - 1) for part in parts)
    if tag in _MAPPINGS:
        return _mapping(_MAPPINGS[tag], parts, levels)
    if tag == "deque" and len(parts) == 2:
        return _deque(parts, levels)
    if tag == "namedtuple" and len(parts) == 3:
        return _namedtuple(parts, levels)
    if tag == "class" and len(parts) == 3:
        return _instance(parts, levels)
    raise FormatError(f"no nesting is written with the tag {tag[:60]!a} like this")


def _children(data: Any, levels: int) -> list[Any]:
    if type(data) is not list:
        raise FormatError("what a nesting holds is a list")
    return [_decode(part, levels - 1) for part in cast("list[Any]", data)]


def _mapping(kind: Any, pairs: list[Any], levels: int) -> Any:
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise FormatError("a dict is written as pairs")
    keys = [decode_value(key) for key, _ in pairs]
    if not all(key is None or isinstance(key, str | int | float) for key in keys):
        raise FormatError("the keys of a dict are texts and numbers")
    if len(set(keys)) < len(keys):
        raise FormatError("a dict has one key twice")
    return kind(zip(keys, (_decode(part, levels - 1) for _, part in pairs), strict=True))


def _deque(parts: list[Any], levels: int) -> Any:
    most, children = parts[0], _children(parts[1], levels)
    if most is not None and (type(most) is not int or not len(children) <= most < 2**31):
        raise FormatError("the length of a deque does not fit")
    return deque(children, maxlen=most)


def _namedtuple(parts: list[Any], levels: int) -> Any:
    """Make a namedtuple of a class that is there, or else of one with the same fields."""
    name, fields, children = parts[0], parts[1], _children(parts[2], levels)
    plain = type(name) is str and type(fields) is list and all(type(x) is str for x in fields)
    if not plain or len(fields) != len(children):
        raise FormatError("a namedtuple is written as its name, its fields and as many parts")
    module, _, kind = name.rpartition(".")
    found = vars(sys.modules[module]).get(kind) if module in sys.modules else None
    if not isinstance(found, type) or not pytree.is_namedtuple_class(found):
        found = None
    if found is None or list(cast("Any", found)._fields) != fields:
        try:
            found = _made_up(kind, fields, module=module)
        except ValueError as error:
            raise FormatError(f"the namedtuple {name[:100]!a}: {error}") from error
    return cast("Any", found)(*children)


def _instance(parts: list[Any], levels: int) -> Any:
    name, context, children = parts[0], decode_value(parts[1]), _children(parts[2], levels)
    if type(name) is not str:
        raise FormatError("a class is named by a text")
    node = pytree.SUPPORTED_NODES.get(_registered(name))
    if node is None:
        module = name.rpartition(".")[0]
        raise FormatError(
            f"the arguments or outputs have the class {name[:200]!a}, which is not registered with "
            f"torch's pytree here; import {module[:200]!a} first"
        )
    try:
        return node.unflatten_fn(children, context)
    except Exception as error:  # a class may refuse what a file says of it in any way
        raise FormatError(f"the class {name} cannot be made of {len(children)} parts") from error


def _registered(name: str) -> Any:
    module = name.rpartition(".")[0]
    if module in _IMPORTED and importlib.util.find_spec("transformers") is not None:
        importlib.import_module(module)
    if name.startswith("torch._"):
        return None
    return next((kind for kind in pytree.SUPPORTED_NODES if _name(kind) == name), None)
