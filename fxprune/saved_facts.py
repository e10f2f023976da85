"""What a .fxp says of a Program's arguments."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

from fxprune.errors import FormatError
from fxprune.inputs import Input, InputSpec
from fxprune.nesting import Nesting
from fxprune.open_inputs import OpenSpec
from fxprune.saved_document import SavedInput, SavedInputs
from fxprune.saved_nesting import decode_nesting, encode_nesting
from fxprune.saved_values import decode_dtype, decode_value, encode_dtype, encode_value

__all__ = ["decode_inputs", "decode_table", "encode_inputs", "encode_table"]

_SYMBOL = re.compile(r"([1-9][0-9]{0,5}\*)?[A-Za-z_]\w{0,100}", re.ASCII)
_MOST_ENTRIES = 2**31


def encode_inputs(spec: InputSpec) -> SavedInputs:
    """Return an input spec as data.

    Raises:
        FormatError: a constant or a class among the arguments cannot be written.
    """
    return SavedInputs(
        inputs=[_encode_input(leaf) for leaf in spec.inputs],
        nesting=encode_nesting(spec.nesting),
        names=list(spec.names),
        keywords=list(spec.keywords),
        positional=list(spec.positional),
        float_dtype=None if spec.float_dtype is None else encode_dtype(spec.float_dtype),
        smallest=spec.smallest,
        bounds={name: [low, high] for name, (low, high) in spec.bounds.items()},
        defaults=encode_table(spec.defaults) if isinstance(spec, OpenSpec) else None,
    )


def decode_inputs(saved: SavedInputs) -> InputSpec:
    """Return the input spec that `encode_inputs` made `saved` of.

    Raises:
        FormatError: a name cannot stand in a signature, or the parts do not fit each other.
    """
    nesting = decode_nesting(saved.nesting)
    inputs = tuple(_decode_input(leaf) for leaf in saved.inputs)
    if nesting.tree.num_leaves != len(inputs):
        raise FormatError(f"{nesting.tree.num_leaves} are nested, and {len(inputs)} described")
    _check_call(nesting, saved)
    if saved.defaults is not None:
        if not set(saved.defaults) <= set(saved.names) or saved.keywords:
            raise FormatError("defaults: not all of these are arguments")
        return OpenSpec.of(tuple(saved.names), decode_table(saved.defaults))
    return InputSpec(
        inputs=inputs,
        nesting=nesting,
        names=tuple(saved.names),
        keywords=tuple(saved.keywords),
        positional=tuple(saved.positional),
        float_dtype=None if saved.float_dtype is None else decode_dtype(saved.float_dtype),
        smallest=saved.smallest,
        bounds={name: (low or 0, high) for name, (low, high) in saved.bounds.items()},
    )


def encode_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return named constants as data.

    Raises:
        FormatError: one of them cannot be written.
    """
    return {name: encode_value(value) for name, value in table.items()}


def decode_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants that `encode_table` made `table` of.

    Raises:
        FormatError: one of them is no constant.
    """
    return {name: decode_value(value) for name, value in table.items()}


def _encode_input(leaf: Input) -> SavedInput:
    try:
        constant = encode_value(leaf.constant)
    except FormatError as error:
        raise FormatError(f"input {leaf.name}: {error}") from error
    return SavedInput(
        name=leaf.name,
        shape=list(leaf.shape),
        dtype=None if leaf.dtype is None else encode_dtype(leaf.dtype),
        low=leaf.low,
        high=leaf.high,
        constant=constant,
    )


def _decode_input(saved: SavedInput) -> Input:
    where = f"input {saved.name[:100]!a}"
    wrong = [dim for dim in saved.shape if isinstance(dim, str) and not _SYMBOL.fullmatch(dim)]
    if wrong:
        raise FormatError(f"{where}: {wrong[0][:100]!a} is no symbolic size")
    if math.prod(dim for dim in saved.shape if isinstance(dim, int)) > _MOST_ENTRIES:
        raise FormatError(f"{where}: the shape {saved.shape[:8]} is absurd")
    low, high = saved.low, saved.high
    if (low is None) is not (high is None) or not -(2**63) <= (low or 0) <= (high or 0) < 2**63:
        raise FormatError(f"{where}: the range {low}..{high} is none")
    dtype = None if saved.dtype is None else decode_dtype(saved.dtype)
    constant = decode_value(saved.constant)
    if dtype is not None and constant is not None:
        raise FormatError(f"{where}: it is a tensor and a constant")
    return Input(saved.name, tuple(saved.shape), dtype, low, high, constant)


def _check_call(nesting: Nesting, saved: SavedInputs) -> None:
    """Check that names fit the arguments, and can stand in the generated signature."""
    call: Any = nesting.skeleton
    if type(call) is not tuple or len(call) != 2 or type(call[0]) is not tuple:
        raise FormatError("nesting: arguments are a tuple and a dict")
    if type(call[1]) is not dict or list(call[1]) != saved.keywords:
        raise FormatError("keywords: these are not those of the nesting")
    if len(call[0]) != len(saved.names) or not set(saved.positional) <= set(saved.keywords):
        raise FormatError("names: there must be one for each argument")
    names = [*saved.names, *saved.keywords]
    for name in names:
        plain = name.isidentifier() and not keyword.iskeyword(name)
        if not plain or name == "self" or name.startswith("__"):
            raise FormatError(f"names: {name[:100]!a} cannot be an argument's name")
    if len(set(names)) < len(names):
        raise FormatError("names: one stands twice")
