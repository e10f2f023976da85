"""The JSON of a .pt2: torch makes Python code of its names, so each text in it is checked.

What loading does not need, and would run or import something, is dropped: guards, and most of what
is noted of a node.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.pt2_expressions import check_expression
from fxprune.reading import parse_json
from fxprune.saved_ops import function_of

__all__ = ["checked_document", "checked_payloads"]

_MOST_EXPRESSIONS = 200_000  # each takes sympy about a millisecond
_LARGEST = 2**63
_MOST_SYMBOLS = 10_000
_RANGE = re.compile(r"[a-z]{1,4}[0-9]{1,4}", re.ASCII)
_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_KEPT = ("nn_module_stack", "stack_trace", "torch_fn")  # of what is noted of a node
_NAMES = frozenset(
    {
        *("name", "as_name", "user_input_name", "forward_arg_names"),
        *("as_string_to_argument", "tensor_values", "sym_int_values", "sym_float_values"),
        "sym_bool_values",
    }
)
_PATHS = frozenset(
    {
        *("parameter_name", "buffer_name", "tensor_constant_name", "fqn", "path_name", "type"),
        *("inputs", "outputs", "verifiers", "torch_version"),
    }
)
_PYTREES: Mapping[Any, Any] = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
_TEXTS = frozenset({"as_string", "as_strings", *_KEPT})
# These stand for objects that are unpickled, or for functions that are called by their name.
_REFUSED = frozenset({"as_custom_obj", "custom_obj", "custom_obj_values", "as_operator", "token"})


def checked_document(raw: bytes, where: str) -> bytes:
    """Return the graph of a .pt2 without what would run or import something.

    Args:
        raw: the member `models/....json`.
        where: what messages call it.

    Raises:
        FormatError: says which text in it is not what torch writes.
    """
    document = _parse_table(raw, where)
    if raw.count(b'"expr_str"') > _MOST_EXPRESSIONS:
        raise FormatError(f"{where}: it has more than {_MOST_EXPRESSIONS:,} symbolic sizes")
    ranges = document.get("range_constraints")
    if not isinstance(ranges, dict) or len(cast("dict[str, Any]", ranges)) > _MOST_SYMBOLS:
        raise FormatError(f"{where}: range_constraints is no table")
    for name in cast("dict[str, Any]", ranges):
        if not _RANGE.fullmatch(name):
            raise FormatError(f"{where}: {name[:60]!a} is no symbol of a size")
    document["guards_code"] = []
    module = document.get("graph_module")
    if not isinstance(module, dict):
        raise FormatError(f"{where}: graph_module is no table")
    cast("dict[str, Any]", module).update(metadata={}, treespec_namedtuple_fields={})
    _walk(document, "", where)
    return json.dumps(document).encode()


def checked_payloads(raw: bytes, where: str) -> dict[str, Any]:
    """Return the table of tensors in a .pt2.

    Args:
        raw: the member `data/.../..._config.json`.
        where: what messages call it.

    Raises:
        FormatError: says what does not fit.
    """
    config = _parse_table(raw, where).get("config")
    if not isinstance(config, dict):
        raise FormatError(f"{where}: config is no table")
    entries = cast("dict[str, Any]", config)
    for name, entry in entries.items():
        if not _is_path(name) or not isinstance(entry, dict):
            raise FormatError(f"{where}: {name[:60]!a} is no tensor")
        _walk(entry, "", where)
    return entries


def _parse_table(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = parse_json(raw)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(f"{where}: this is no table")
    return cast("dict[str, Any]", data)


def _walk(value: Any, key: str, where: str) -> None:
    """Check every text, key and number in JSON; `key` is the nearest one above."""
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        for name, item in table.items():
            if name in _REFUSED and item not in ({}, [], None):
                raise FormatError(f"{where}: it has a {name}, which torch would unpickle or call")
            if key in _NAMES and not _is_name(name):
                raise FormatError(f"{where}: {name[:60]!a} is no name")
            if name == "metadata" and isinstance(item, dict):
                notes = cast("dict[str, Any]", item)
                table[name] = {k: notes[k] for k in _KEPT if k in notes}
            _walk(table[name], name, where)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            _walk(item, key, where)
    elif isinstance(value, str):
        _check_text(value, key, where)
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise FormatError(f"{where}: {key[:60]!a} has a number of {value.bit_length()} bits")


def _check_text(text: str, key: str, where: str) -> None:
    if key not in _CHECKS:
        raise FormatError(f"{where}: {key[:60]!a} has the text {text[:60]!a}")
    try:
        fits = _CHECKS[key](text)
    except (FormatError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise FormatError(f"{where}: {key}: {str(error)[:200]}") from error
    if fits is False:
        raise FormatError(f"{where}: {key}: {text[:60]!a} is not what torch writes there")


def _is_name(text: str) -> bool:
    return not text or (text.isidentifier() and (not keyword.iskeyword(text) or text == "from"))


def _is_path(text: str) -> bool:
    return len(text) < 10_000 and text.isprintable() and not set(text) & set("\"'\\`;")


def _check_target(text: str) -> None:
    """Check that a node calls an operator that a .fxp may call, too."""
    known = {f"torch.ops.higher_order.{name}" for name in _REGIONS}
    if text not in known:
        function_of(
            re.sub(r"^torch\.ops\.(?=aten\.)", "", re.sub(r"^_operator\.", "operator.", text))
        )


def _check_nesting(text: str) -> None:
    """Check a pytree's spec: torch imports what a defaultdict or an enum in it names."""
    if not text:
        return
    data: Any = parse_json(text)
    stack: list[Any] = data[1:] if isinstance(data, list) else [None]
    while stack:
        spec: Any = stack.pop()
        if not isinstance(spec, dict) or not isinstance(spec["children_spec"], list):
            raise FormatError("this is no nesting")
        stack += spec["children_spec"]
        kind, context = cast("Any", spec["type"]), spec["context"]
        if kind is None and context is None:
            continue
        found = _PYTREES.get(kind)
        known = None if found is None else pytree.SUPPORTED_SERIALIZED_TYPES[found]
        if known is None or known.from_dumpable_context is not None or not _is_plain(context):
            raise FormatError(f"{str(kind)[:60]!a} is no container that can be read safely")


def _is_plain(context: Any) -> bool:
    return isinstance(context, str) and "{" not in context


_CHECKS: Mapping[str, Callable[[str], bool | None]] = {
    **dict.fromkeys(_NAMES, _is_name),
    **dict.fromkeys(_PATHS, _is_path),
    **dict.fromkeys(_TEXTS, lambda text: len(text) < 1_000_000),
    "expr_str": check_expression,
    "target": _check_target,
    "in_spec": _check_nesting,
    "out_spec": _check_nesting,
}
