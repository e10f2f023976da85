"""The base of a recipe's tables, and `Select`: which parameters a rule takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from fxprune.errors import RecipeError
from fxprune.recipe_errors import choices, explain, hint, plain, refuse, show
from fxprune.regexes import LONGEST, UnboundedError, check_regex

__all__ = ["DTYPES", "Count", "Names", "Reading", "Select", "Table", "as_tuple"]

_Init = TypeVar("_Init", bound=Callable[..., None])

MOST_WILD = 1000  # globs of one key
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


def as_tuple(value: object, key: str) -> object:
    """A list as a tuple, anything else as it is.

    Raises:
        ValueError: The list is empty: as good as no key to pydantic, but not to who wrote it.
    """
    if isinstance(value, list | tuple) and not value:
        raise ValueError(f"{key} = [] is empty; {hint(key)}")
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _several(value: object, info: ValidationInfo) -> object:
    several = as_tuple(value, str(info.field_name))
    return several if isinstance(several, tuple) else (several,)


Count = Annotated[int, Field(ge=0, lt=2**63)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_several, json_schema_input_type=str | list[str]),
]
_Sizes = Annotated[
    tuple[Count, ...], BeforeValidator(_several, json_schema_input_type=int | list[int])
]


class Reading(NamedTuple):
    """How a recipe is read from data: pydantic's context, None where Python builds the recipe."""

    allow_imports: bool
    folder: Path | None
    gives_masks: bool = False  # Python hands masks over beside the recipe


def _as_pydantics_own(init: _Init) -> _Init:
    """Mark an __init__ as pydantic's own: `wraps` copies the mark along with the rest.

    pydantic calls any other __init__ for nested tables too, where an error has no place yet.
    """
    return cast("_Init", functools.wraps(BaseModel.__init__)(init))


class Table(BaseModel):
    """What all tables share: frozen, no unknown keys, no conversions, RecipeError on a fault."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_by_alias=True, validate_by_name=True
    )

    # Each table takes this over by name: type checkers would give it one of strict types instead.
    @_as_pydantics_own
    def __init__(self, **data: Any) -> None:
        kind = type(self)
        try:
            super().__init__(**data)
        except ValidationError as error:
            text = explain(error, data, model=kind, where=kind.__name__)
            raise RecipeError(text) from None


class Select(Table):
    """Which parameters a rule takes: each key is a value or a list, and all given keys must hold.

    Args:
        op: Canonical names of operators that read the parameter, as "conv2d".
        role: The argument of that operator that the parameter is, as "weight".
        module: Class names of the owner, as "Linear".
        path: Globs on the full name, as "layer1.*.weight".
        regex: Regular expressions on the full name.
        param: Attribute names in the owner, as "bias".
        exclude: Globs on the full names to leave out.
        min_numel: The least number of elements.
        ndim: Numbers of dimensions.
        dtype: Names of torch dtypes, as "float32".

    Raises:
        RecipeError: A key is unknown or its value does not fit.

    Example:
        >>> Select(op=["conv2d", "linear"], exclude="fc3.*").exclude
        ('fc3.*',)
    """

    __init__ = Table.__init__

    op: Names = ()
    role: Names = ()
    module: Names = ()
    path: Names = ()
    regex: Names = ()
    param: Names = ()
    exclude: Names = ()
    min_numel: Count | None = None
    ndim: _Sizes = ()
    dtype: Names = ()

    @field_validator("regex")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        refuse(_regex_fault(pattern) for pattern in patterns)
        return patterns

    @field_validator("path", "exclude")
    @classmethod
    def _is_short(cls, globs: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        long = [glob for glob in globs if len(glob) > LONGEST]
        wild = sum(any(letter in "*?[" for letter in glob) for glob in globs)
        if wild > MOST_WILD:
            refuse(
                [
                    f"{info.field_name} has {wild} globs; at most {MOST_WILD} are read, and any "
                    "number of names without * and ?; say it with fewer"
                ]
            )
        refuse(
            f"{info.field_name} = {show(glob)} has {len(glob)} characters; at most {LONGEST} are "
            "read"
            for glob in long
        )
        return globs

    @field_validator("dtype")
    @classmethod
    def _exists(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        odd = [name for name in names if name not in DTYPES]
        refuse(f"dtype = {show(name)} {choices(name, DTYPES)}" for name in odd)
        return names


def _regex_fault(pattern: str) -> str:
    """What is wrong with a regular expression and at which character; "" for nothing."""
    head = f"regex = {show(pattern)} is no regular expression"
    try:
        check_regex(pattern)
    except UnboundedError as error:
        return f"regex = {show(pattern)} {error}; make it simpler"
    except re.error as error:
        at = len(pattern) if error.pos is None else error.pos
        spot = f"at character {at + 1} {show(pattern[at])}" if at < len(pattern) else "at its end"
        return f"{head}: {plain(error.msg)}, {spot}"
    except (OverflowError, RecursionError):
        return f"{head} that Python can compile; make it simpler"
    return ""
