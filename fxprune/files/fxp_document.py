"""What the metadata of a .fxp says, checked key by key: the types, the limits, nothing unknown."""

from __future__ import annotations

import json
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
from fxprune.reading import parse_json
from fxprune.rule_records import Count, PassRecord, RuleRecord, Text
from fxprune.shrink_record import ShrinkRecord

__all__ = [
    "SavedGraph",
    "SavedInput",
    "SavedInputs",
    "SavedModule",
    "SavedNode",
    "SavedProgram",
    "SavedTensor",
    "parse_document",
    "write_document",
]

_VERSION = 1
_MOST_FAULTS = 5
_MOST_NAMES = 100_000  # in one table

Name = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


_Item = TypeVar("_Item")


def _small(table: Any) -> Any:
    if isinstance(table, dict) and len(cast("dict[Any, Any]", table)) > _MOST_NAMES:
        raise ValueError(f"more than {_MOST_NAMES:,} names")
    return table


# A hostile file has millions of faults; the first few of them will do.
Many = Annotated[list[_Item], Field(fail_fast=True)]
Named = Annotated[dict[str, _Item], BeforeValidator(_small)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class SavedTensor(_Table):
    """A parameter or buffer: which data it looks at, and how.

    Args:
        data: the key in the safetensors file.
        dtype: its dtype, as `float32`.
        shape: its shape.
        parameter: whether it is a Parameter.
        grad: whether it requires a gradient.
        stride: where its dimensions lie in another order in memory.
    """

    data: Name
    dtype: Name
    shape: Many[Count]
    parameter: bool = False
    grad: bool = False
    stride: Many[Count] | None = None


class SavedNode(_Table):
    """A node of a graph; `args` and `kwargs` as `fxprune.saved_values` writes them.

    Args:
        op: "placeholder", "get_attr", "call_function", "call_method" or "output".
        name: its name, unique in the graph.
        target: the argument, attribute, function or method; none for the output.
        args: positional arguments.
        kwargs: keyword arguments.
        path: the module whose forward made it.
        shape: of its tensor; a text is a symbolic size.
        dtype: of its tensor.
        trace: the number of its stack trace.
        by: the pass that made it.
    """

    op: Name
    name: Name
    target: Name | None = None
    args: Many[Any] = Field(default_factory=list[Any])
    kwargs: Named[Any] = Field(default_factory=dict[str, Any])
    path: Text | None = None
    shape: Many[Count | Name] | None = None
    dtype: Name | None = None
    trace: Count | None = None
    by: Text | None = None


class SavedModule(_Table):
    """A place in the module tree; numbers are of tensors, or of modules before it.

    Args:
        kind: the class name of the source's module.
        training: its training flag.
        parameters: tensors by name; null for a name without one.
        buffers: likewise.
        unsaved: buffers that `state_dict()` leaves out.
        children: modules by name.
    """

    kind: Text
    training: bool
    parameters: Named[Count | None] = Field(default_factory=dict[str, int | None])
    buffers: Named[Count | None] = Field(default_factory=dict[str, int | None])
    unsaved: Many[Name] = Field(default_factory=list[str])
    children: Named[Count | None] = Field(default_factory=dict[str, int | None])


class SavedInput(_Table):
    """An input: see `fxprune.inputs.Input`."""

    name: Text
    shape: Many[Count | Name] = Field(default_factory=list[int | str])
    dtype: Name | None = None
    low: int | None = None
    high: int | None = None
    constant: Any = None


class SavedInputs(_Table):
    """The arguments: see `fxprune.inputs.InputSpec`.

    Those of a program without an example have `defaults`: see `fxprune.open_inputs.OpenSpec`.
    """

    inputs: Many[SavedInput]
    nesting: Any
    names: Many[Name]
    keywords: Many[Name]
    positional: Many[Name] = Field(default_factory=list[str])
    float_dtype: Name | None = None
    smallest: Annotated[int, Field(ge=1, le=2)] = 1
    bounds: Named[Annotated[list[Count | None], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict[str, list[int | None]]
    )
    defaults: Named[Any] | None = None


class SavedGraph(_Table):
    """A graph and the nesting of what it returns."""

    nodes: Many[SavedNode]
    outputs: Any


class SavedProgram(_Table):
    """All of a Program but the values of its tensors."""

    version: int
    inputs: SavedInputs
    graphs: Named[SavedGraph]
    first: Named[Name]
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
    """Return the document of a file.

    Args:
        text: from a file; of a size that the caller has limited.

    Raises:
        FormatError: says which key is at fault.
    """
    data = parse_json(text)
    version = cast("dict[str, Any]", data).get("version") if isinstance(data, dict) else None
    if type(version) is not int or version != _VERSION:
        raise FormatError(
            f"this fxprune reads version {_VERSION} of the format, and the file says "
            f"{str(version)[:60]!a}"
        )
    try:
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
