"""What the metadata of a .fxp says, checked key by key: the types, the limits, nothing unknown."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from fxprune.errors import FormatError
from fxprune.files.fxp_values import (
    decode_dtype,
    decode_nesting,
    decode_value,
    encode_dtype,
    encode_nesting,
    encode_value,
)
from fxprune.program import (
    Count,
    Input,
    InputSpec,
    Nesting,
    PassRecord,
    RuleRecord,
    ShrinkRecord,
    Text,
    UnshapedSpec,
)
from fxprune.support import parse_json

_VERSION = 1
_MOST_FAULTS = 5
_MOST_NAMES = 100_000  # in one table

_Name = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


_Item = TypeVar("_Item")


def _small(table: Any) -> Any:
    if isinstance(table, dict) and len(cast("dict[Any, Any]", table)) > _MOST_NAMES:
        raise ValueError(f"more than {_MOST_NAMES:,} names")
    return table


# A hostile file has millions of faults; the first few of them will do.
Many = Annotated[list[_Item], Field(fail_fast=True)]
Named = Annotated[dict[str, _Item], BeforeValidator(_small)]


class _Saved(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class SavedTensor(_Saved):
    """A parameter or buffer: which data of the file it looks at, and how."""

    data: _Name  # the key in the safetensors file
    dtype: _Name  # as "float32"
    shape: Many[Count]
    parameter: bool = False
    grad: bool = False
    stride: Many[Count] | None = None  # where dimensions lie in another order in memory


class SavedNode(_Saved):
    """A node of a graph; `args` and `kwargs` as `fxp_values` writes them."""

    op: _Name
    name: _Name
    target: _Name | None = None
    args: Many[Any] = Field(default_factory=list[Any])
    kwargs: Named[Any] = Field(default_factory=dict[str, Any])
    path: Text | None = None  # of the module whose forward made it
    shape: Many[Count | _Name] | None = None  # a text is a symbolic size
    dtype: _Name | None = None
    trace: Count | None = None  # the number of its stack trace
    by: Text | None = None  # the pass that made it


class SavedModule(_Saved):
    """A place in the module tree; numbers are of tensors, or of modules before it."""

    kind: Text  # the class name of the source's module
    training: bool
    parameters: Named[Count | None] = Field(default_factory=dict[str, int | None])
    buffers: Named[Count | None] = Field(default_factory=dict[str, int | None])
    unsaved: Many[_Name] = Field(default_factory=list[str])  # not in state_dict()
    children: Named[Count | None] = Field(default_factory=dict[str, int | None])


class SavedInput(_Saved):
    """An `Input`."""

    name: Text
    shape: Many[Count | _Name] = Field(default_factory=list[int | str])
    dtype: _Name | None = None
    low: int | None = None
    high: int | None = None
    constant: Any = None


class SavedInputs(_Saved):
    """An `InputSpec`, or with `defaults` an `UnshapedSpec`."""

    inputs: Many[SavedInput]
    nesting: Any
    names: Many[_Name]
    keywords: Many[_Name]
    positional: Many[_Name] = Field(default_factory=list[str])
    float_dtype: _Name | None = None
    smallest: Annotated[int, Field(ge=1, le=2)] = 1
    bounds: Named[Annotated[list[Count | None], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict[str, list[int | None]]
    )
    defaults: Named[Any] | None = None


class SavedGraph(_Saved):
    """A graph and the nesting of what it returns."""

    nodes: Many[SavedNode]
    outputs: Any


class SavedProgram(_Saved):
    """All of a Program but the values of its tensors."""

    version: int
    inputs: SavedInputs
    graphs: Named[SavedGraph]
    first: Named[_Name]
    frozen: Named[Named[bool]]
    deciders: Many[str]
    notes: Many[Text]
    refused: Named[Text]
    records: Many[RuleRecord]
    passes: Many[PassRecord]
    shrinks: Many[ShrinkRecord] = Field(default_factory=list[ShrinkRecord])
    traces: Many[Text]
    tensors: Many[SavedTensor]
    modules: Many[SavedModule]


def write_document(program: SavedProgram) -> str:
    """Return the document as JSON on one line; equal documents give equal texts."""
    data = program.model_dump(mode="python", exclude_defaults=True)
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def parse_document(text: str) -> SavedProgram:
    """Return the document of a file; its size is limited by the caller."""
    data = parse_json(text)
    version = cast("dict[str, Any]", data).get("version") if isinstance(data, dict) else None
    if type(version) is not int or version != _VERSION:
        raise FormatError(
            f"this fxprune reads version {_VERSION} of the format, and the file says "
            f"{str(version)[:60]!a}"
        )
    try:
        # Once more: pydantic's strict types take lists for tuples and records only in JSON.
        return SavedProgram.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(_faults(error)) from error


def _faults(error: ValidationError) -> str:
    """Say in one line what does not fit, and where."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    if "recursion limit" in faults[0]["msg"]:
        return "the document is nested deeper than 200 levels"
    lines = [
        f"{'.'.join(str(part)[:60] for part in fault['loc']) or 'document'}: {fault['msg']}"
        for fault in faults[:_MOST_FAULTS]
    ]
    return ascii("; ".join(lines))[1:-1]


_SYMBOL = re.compile(r"([1-9][0-9]{0,5}\*)?[A-Za-z_]\w{0,100}", re.ASCII)
_MOST_ENTRIES = 2**31


def encode_inputs(spec: InputSpec) -> SavedInputs:
    """Return an input spec as data."""
    return SavedInputs(
        inputs=[_encode_input(leaf) for leaf in spec.inputs],
        nesting=encode_nesting(spec.nesting),
        names=list(spec.names),
        keywords=list(spec.keywords),
        positional=list(spec.positional),
        float_dtype=None if spec.float_dtype is None else encode_dtype(spec.float_dtype),
        smallest=spec.smallest,
        bounds={name: [low, high] for name, (low, high) in spec.bounds.items()},
        defaults=encode_table(spec.defaults) if isinstance(spec, UnshapedSpec) else None,
    )


def decode_inputs(saved: SavedInputs) -> InputSpec:
    """Return the input spec that `encode_inputs` made `saved` of."""
    nesting = decode_nesting(saved.nesting)
    inputs = tuple(_decode_input(leaf) for leaf in saved.inputs)
    if nesting.tree.num_leaves != len(inputs):
        raise FormatError(f"{nesting.tree.num_leaves} are nested, and {len(inputs)} described")
    _check_call(nesting, saved)
    if saved.defaults is not None:
        if not set(saved.defaults) <= set(saved.names) or saved.keywords:
            raise FormatError("defaults: not all of these are arguments")
        return UnshapedSpec.of(tuple(saved.names), decode_table(saved.defaults))
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
    """Return named constants as data."""
    return {name: encode_value(value) for name, value in table.items()}


def decode_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants that `encode_table` made `table` of."""
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
