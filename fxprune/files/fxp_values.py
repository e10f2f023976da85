"""Constants of graphs and nestings of arguments as JSON and back: what is not plain has a tag.

A text alone is the name of a node, since that is the common case; a text constant has a tag. A
class in a nesting is named, and must be there already: none is imported, but for a short list of
modules that only define outputs of Hugging Face models.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.program import Nesting

_MOST_LEVELS = 16
_LARGEST = 2**64
_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,4})?")
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_NAMED = {
    tag: {
        str(value).removeprefix("torch."): value
        for value in vars(torch).values()
        if type(value) is kind
    }
    for tag, kind in _KINDS.items()
}


def encode_value(value: Any) -> Any:
    """Return a value as JSON data: a node, a constant of torch or Python, or nests of these.

    Example:
        >>> encode_value((1, [2.5, None], torch.float16, float("inf")))
        {'tuple': [1, [2.5, None], {'dtype': 'float16'}, {'float': 'inf'}]}
    """
    if isinstance(value, Node):
        return value.name
    if value is None or type(value) in (bool, int):
        return _check_whole(value)
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
    """Return the value that `encode_value` made `data` of; `node` finds a node by its name.

    Example:
        >>> decode_value({"tuple": [1, {"str": "x"}, {"slice": [None, 2, None]}]})
        (1, 'x', slice(None, 2, None))
    """
    return _decode(data, node, _MOST_LEVELS)


def encode_dtype(dtype: torch.dtype) -> str:
    """Return a dtype's name, as `float32`."""
    return str(dtype).removeprefix("torch.")


def decode_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name."""
    return _torch_constant("dtype", name)


def _check_whole(value: int | None) -> int | None:
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
        return _check_whole(data)
    if type(data) is str:
        if node is None:
            raise FormatError(f"a node's name, {_show(data)}, where a constant goes")
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
        _check_keys([key for key, _ in parts])
        return dict(map(tuple, parts))
    if tag == "complex" and len(parts) == 2 and all(type(part) is float for part in parts):
        return complex(*parts)
    raise FormatError(f"no {tag} is written like this")


def _check_keys(keys: list[Any]) -> None:
    if not all(key is None or type(key) in (str, int, bool, float) for key in keys):
        raise FormatError("the keys of a dict are texts and numbers")
    if len(set(keys)) < len(keys):
        raise FormatError("a dict has one key twice")


def _decode_tagged(tag: str, inside: Any) -> Any:
    if tag == "ellipsis" and inside is True:
        return ...
    if type(inside) is not str:
        raise FormatError(f"unknown value with the tag {_show(tag)}")
    if tag == "str":
        return inside
    if tag == "float" and inside in ("nan", "inf", "-inf"):
        return float(inside)
    if tag == "device":
        return _device(inside)
    if tag in _NAMED:
        return _torch_constant(tag, inside)
    raise FormatError(f"unknown value with the tag {_show(tag)}")


def _device(name: str) -> torch.device:
    try:
        if _DEVICE.fullmatch(name):
            return torch.device(name)
    except RuntimeError:
        pass
    raise FormatError(f"torch knows no device {_show(name)}")


def _torch_constant(tag: str, name: str) -> Any:
    if name not in _NAMED[tag]:
        raise FormatError(f"torch knows no {tag} {_show(name)}")
    return _NAMED[tag][name]


def _show(text: str) -> str:
    return ascii(text[:60])


_new_namedtuple: Any = namedtuple
_LEAF = "*"
_MOST_NESTING = 32
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "list": list}
_MAPPINGS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict}
_TAGS = {kind: tag for tag, kind in (_SEQUENCES | _MAPPINGS).items()}
# Importing these defines classes and does nothing else.
_IMPORTED = ("transformers.modeling_outputs", "transformers.cache_utils")


def encode_nesting(nesting: Nesting) -> Any:
    """Return a nesting as JSON data; a class in it must have a name and a plain description.

    Example:
        >>> encode_nesting(Nesting(({"a": 0}, [1, 2])))
        {'tuple': [{'dict': [[{'str': 'a'}, '*']]}, {'list': ['*', '*']}]}
    """
    return _encode_tree(nesting.tree)


def decode_nesting(data: Any) -> Nesting:
    """Return the nesting that `encode_nesting` made `data` of.

    Example:
        >>> decode_nesting({"tuple": ["*", {"list": ["*"]}]}).unflatten("xy")
        ('x', ['y'])
    """
    return Nesting(_decode_nesting(data, _MOST_NESTING))


def _encode_tree(tree: pytree.TreeSpec) -> Any:
    if tree.type is None:
        return _LEAF
    parts = [_encode_tree(child) for child in tree.children()]
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


def _decode_nesting(data: Any, levels: int) -> Any:
    if data == _LEAF and type(data) is str:
        return 0
    if levels == 0:
        raise FormatError(f"nested deeper than {_MOST_NESTING} levels")
    if type(data) is not dict or len(cast("dict[Any, Any]", data)) != 1:
        raise FormatError("a nesting is '*' or a table with one tag")
    [(tag, inside)] = cast("dict[str, Any]", data).items()
    if type(inside) is not list:
        raise FormatError("what a nesting holds is a list")
    parts = cast("list[Any]", inside)
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](_decode_nesting(part, levels - 1) for part in parts)
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
    return [_decode_nesting(part, levels - 1) for part in cast("list[Any]", data)]


def _mapping(kind: Any, pairs: list[Any], levels: int) -> Any:
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise FormatError("a dict is written as pairs")
    keys = [decode_value(key) for key, _ in pairs]
    _check_keys(keys)
    return kind(zip(keys, (_decode_nesting(part, levels - 1) for _, part in pairs), strict=True))


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
            found = _new_namedtuple(kind, fields, module=module)
        except ValueError as error:
            raise FormatError(f"the namedtuple {name[:100]!a}: {error}") from error
    return cast("Any", found)(*children)


def _instance(parts: list[Any], levels: int) -> Any:
    name, context, children = parts[0], decode_value(parts[1]), _children(parts[2], levels)
    if type(name) is not str:
        raise FormatError("a class is named by a text")
    node = pytree.SUPPORTED_NODES.get(_registered_class(name))
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


def _registered_class(name: str) -> Any:
    module = name.rpartition(".")[0]
    if module in _IMPORTED and importlib.util.find_spec("transformers") is not None:
        importlib.import_module(module)
    if name.startswith("torch._"):
        return None
    return next((kind for kind in pytree.SUPPORTED_NODES if _name(kind) == name), None)
