"""torch.export's .pt2 files, read without running what is in them.

`torch.export.load` unpickles parts of such a file with weights_only=False (pytorch/pytorch#132348),
and evaluates names and symbolic sizes in it as Python. Here every part is checked, pickles are read
with `weights_only=True`, and torch is handed a copy of what was found, without what loading does
not need.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import FormatError
from fxprune.files.fxp_graph import function_of
from fxprune.support import (
    PathLike,
    check_is_file,
    open_archive,
    parse_json,
    quiet_export,
    read_safely,
    unpickle,
)

_SAMPLES, _MODELS = "data/sample_inputs/", "models/"
_PAYLOADS = ("data/weights/", "data/constants/")
_CONFIGS = ("_weights_config.json", "_constants_config.json")
_SETTINGS = ("archive_format", "archive_version", "byteorder", ".data/version")


def load_pt2(path: PathLike) -> ExportedProgram:
    """Read a .pt2 that torch.export.save wrote, from any source; nothing in the file is run.

    The whole file is read into memory. A graph in it can call only operators of torch's that
    compute.

    Args:
        path: a .pt2 file of this torch's format.

    Returns:
        What `torch.export.load` gives, to be captured or run.

    Raises:
        FormatError: the file is missing, damaged, or holds what torch would have to run.

    Example:
        >>> import fxprune, tempfile
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = fxprune.export(program, Path(folder, "net.pt2"))
        ...     print(fxprune.capture(load_pt2(path)).inputs)
        input: float32[batch, 3]
    """
    source = Path(path)
    with read_safely(source, _damage):
        check_is_file(source, ".pt2")
        with source.open("rb") as file, open_archive(file) as archive:
            infos = archive.infolist()
            parts = {info.filename.partition("/")[2]: archive.read(info) for info in infos}
        written = _rewrite(parts)
        with quiet_export(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(written)


def _damage(error: Exception) -> str:
    return (
        "this .pt2 file is damaged, or of another version of torch; nothing in it was run "
        f"({type(error).__name__}: {str(error)[:100]!a})"
    )


def _rewrite(members: Mapping[str, bytes]) -> io.BytesIO:
    """Return a .pt2 of one model, made of what was checked."""
    models = [name for name in members if name.startswith(_MODELS)]
    if models != ["models/model.json"]:
        raise FormatError("this file does not hold one graph, as torch.export.save writes it")
    if members.get("byteorder", b"little") != b"little":
        raise FormatError("its numbers are written from their other end")
    parts = {name: members[name] for name in _SETTINGS if name in members}
    parts[models[0]] = _clean_document(members[models[0]], models[0])
    samples = f"{_SAMPLES}model.pt"
    # What an old file has no sample for, torch takes an empty member for.
    sample = members.get(samples, b"")
    parts[samples] = _repickle(sample, samples) if sample else b""
    for folder, config in zip(_PAYLOADS, _CONFIGS, strict=True):
        parts |= _payloads(members, folder, f"{folder}model{config}")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in parts.items():
            archive.writestr(f"archive/{name}", raw)
    stream.seek(0)
    return stream


def _payloads(members: Mapping[str, bytes], folder: str, config: str) -> dict[str, bytes]:
    """Return the table of tensors in a folder, and the tensors that it names."""
    if config not in members:
        raise FormatError(f"{config} is missing; export the model again with this torch")
    found = {config: members[config]}
    for name, entry in _parse_payloads(members[config], config).items():
        path = entry.get("path_name")
        if not isinstance(path, str) or not path.startswith(("weight_", "tensor_")):
            raise FormatError(f"{config}: {name[:60]!a} is no tensor, and torch would unpickle it")
        member = f"{folder}{path}"
        if member not in members:
            raise FormatError(f"{config}: {name[:60]!a} has no member {path[:60]!a}")
        pickled = entry.get("use_pickle") is not False
        if not pickled:
            _check_size(entry.get("tensor_meta"), len(members[member]), f"{config}: {name[:60]!a}")
        if member not in found:
            found[member] = _repickle(members[member], member) if pickled else members[member]
    return found


def _check_size(meta: Any, size: int, where: str) -> None:
    """Check that a tensor has no more entries than bytes: torch would make room for them."""
    sizes = [entry.get("as_int") for entry in meta["sizes"]]
    if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) > size:
        raise FormatError(f"{where} has the shape {str(sizes)[:60]} in {size} bytes")


def _repickle(raw: bytes, where: str) -> bytes:
    """Read a pickle of tensors without running it, and write it again."""
    try:
        found = unpickle(io.BytesIO(raw))
    except Exception as error:  # a damaged pickle raises many kinds
        raise FormatError(
            f"{where}: this pickle holds other things than tensors and plain values, and nothing "
            f"in it was run ({type(error).__name__})"
        ) from error
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()


_LONGEST = 2000  # characters
_DEEPEST = 16  # calls in each other
_MOST_POWER = 8
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,9}", re.ASCII)
_FLAGS = frozenset({"integer", "positive", "negative", "nonnegative", "real", "finite", "zero"})
_FUNCTIONS = frozenset(
    {
        *("Add", "Mul", "Max", "Min", "Abs", "Not", "And", "Or", "Mod", "PythonMod", "Identity"),
        *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
        *("GreaterThan", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "FloorDiv", "CleanDiv", "CeilDiv"),
        *("ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "CeilToInt", "FloorToInt"),
        *("RoundToInt", "RoundDecimal", "ToFloat", "TruncToInt", "TruncToFloat", "floor"),
        *("ceiling", "IsNonOverlappingAndDenseIndicator"),
    }
)
_CONSTANTS = frozenset({"true", "false"})


def check_expression(text: str) -> None:
    """Check that a symbolic size calls nothing but arithmetic, on numbers of common size.

    torch writes it as "Mul(Integer(2), Symbol('s77', positive=True, integer=True))".
    """
    try:
        tree = ast.parse(text if len(text) <= _LONGEST else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _fits(tree, 0):
        raise FormatError(f"{text[:60]!a} is no symbolic size")


def _fits(tree: ast.expr, level: int) -> bool:
    if isinstance(tree, ast.Name):
        return tree.id in _CONSTANTS or _SYMBOL.fullmatch(tree.id) is not None
    if isinstance(tree, ast.Constant):
        return _is_number(tree)
    if level > _DEEPEST or not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        return False
    name, args = tree.func.id, tree.args
    if name == "Symbol":
        return _is_symbol(tree)
    if tree.keywords:
        return False
    if name in ("Integer", "Float", "Rational"):
        return 1 <= len(args) <= 2 and all(map(_is_number, args))
    if name == "Pow":
        return len(args) == 2 and _is_power(*args) and _fits(args[0], level + 1)
    return name in _FUNCTIONS and all(_fits(arg, level + 1) for arg in args)


def _is_symbol(tree: ast.Call) -> bool:
    flags = {word.arg: word.value for word in tree.keywords}
    name = tree.args[0] if len(tree.args) == 1 else None
    return (
        isinstance(name, ast.Constant)
        and isinstance(name.value, str)
        and _SYMBOL.fullmatch(name.value) is not None
        and flags.keys() <= _FLAGS
        and all(isinstance(x, ast.Constant) and isinstance(x.value, bool) for x in flags.values())
    )


def _is_number(tree: ast.expr) -> bool:
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        tree = tree.operand
    value = tree.value if isinstance(tree, ast.Constant) else None
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _is_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Tell whether a power is small: a power of a power, or a large one, may take all memory."""
    nested = any(isinstance(part, ast.Name) and part.id == "Pow" for part in ast.walk(base))
    whole = exponent.args[:1] if isinstance(exponent, ast.Call) else []
    if nested or not whole or not _is_number(whole[0]):
        return False
    return ast.literal_eval(whole[0]) in range(-1, _MOST_POWER + 1)


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
# Numbers that JSON cannot hold: torch writes them as texts, as in attention's masks of -inf.
_FLOATS = frozenset({"as_float", "as_floats", "as_float_lists", "real", "imag"})
_NOT_FINITE = frozenset({"Infinity", "-Infinity", "NaN"})
# These stand for objects that are unpickled, or for functions that are called by their name.
_REFUSED = frozenset({"as_custom_obj", "custom_obj", "custom_obj_values", "as_operator", "token"})


def _clean_document(raw: bytes, where: str) -> bytes:
    """Return the graph of a .pt2 without what would run or import something."""
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


def _parse_payloads(raw: bytes, where: str) -> dict[str, Any]:
    """Return the table of tensors in a .pt2, by name."""
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
    **dict.fromkeys(_FLOATS, _NOT_FINITE.__contains__),
    "expr_str": check_expression,
    "target": _check_target,
    "in_spec": _check_nesting,
    "out_spec": _check_nesting,
}
