"""The base of a recipe's tables, and `Select`: its keys, and its conditions on a parameter."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from fxprune.errors import RecipeError
from fxprune.recipe.faults import explain, refuse
from fxprune.rewrite import capitals, parse
from fxprune.support import LONGEST, UnboundedError, check_regex
from fxprune.words import choices, hint, plain, show

_Init = TypeVar("_Init", bound=Callable[..., None])

MOST_WILD = 1000  # globs of one key
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


def as_tuple(value: object, key: str) -> object:
    """Return a list as a tuple, anything else as it is; an empty one is refused."""
    if isinstance(value, list | tuple) and not value:
        raise ValueError(f"{key} = [] is empty; {hint(key)}")
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _several(value: object, info: ValidationInfo) -> object:
    several = as_tuple(value, str(info.field_name))
    return several if isinstance(several, tuple) else (several,)


def one_or_more(kind: Any) -> Any:
    """Return what a file may hold for a tuple of a kind."""
    return kind | Annotated[list[kind], Field(min_length=1)]


Count = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, Field(min_length=1)]
Names = Annotated[
    tuple[Word, ...], BeforeValidator(_several, json_schema_input_type=one_or_more(Word))
]
_Sizes = Annotated[
    tuple[Count, ...], BeforeValidator(_several, json_schema_input_type=one_or_more(Count))
]
_Dtype = Annotated[str, WithJsonSchema({"enum": [*DTYPES]})]
_Dtypes = Annotated[
    tuple[Word, ...], BeforeValidator(_several, json_schema_input_type=one_or_more(_Dtype))
]


class ReadOptions(NamedTuple):
    """How a recipe is read from data: pydantic's context, None where Python builds the recipe."""

    allow_imports: bool
    folder: Path | None
    gives_masks: bool = False  # Python hands masks over beside the recipe
    loads_passes: bool = True  # those of [[pass]] are imported, and torch with them


def _as_pydantics_own(init: _Init) -> _Init:
    """Mark an __init__ as pydantic's own: `wraps` copies the mark along with the rest.

    pydantic calls any other __init__ for nested tables too, where an error has no place yet.
    """
    return cast("_Init", functools.wraps(BaseModel.__init__)(init))


def _describe(schema: dict[str, Any], table: type[BaseModel]) -> None:
    """Put the docstring's words beside each key of a JSON Schema, in the place of titles."""
    summary, _, rest = (inspect.getdoc(table) or "").partition("\n")
    arguments = rest.partition("Args:\n")[2].partition("\n\n")[0]
    texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE))
    schema.pop("title", None)
    schema["description"] = summary
    for name, field in table.model_fields.items():
        key = schema["properties"][field.alias or name]
        key.pop("title", None)
        if key.get("default", 0) in (None, "", []):  # taken from Python, but no one need write it
            del key["default"]
        key["description"] = " ".join(texts[name].split())


class Table(BaseModel):
    """What all tables share: frozen, no unknown keys, no conversions, RecipeError on a fault."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_alias=True,
        validate_by_name=True,
        json_schema_extra=_describe,
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
    dtype: _Dtypes = ()

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
    """Return what is wrong with a regular expression and where; "" for nothing."""
    head = f"regex = {show(pattern)} is not a regular expression"
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


def choice_faults(select: object, match: str | None, prune: Sequence[str] | None) -> Iterator[str]:
    """Yield what is wrong with a rule's `select`, `match` and `prune` together."""
    if select is not None and match is not None:
        yield "select and match each say which parameters the rule takes; leave one out"
    elif select is not None and prune is not None:
        yield "prune does not go with select; leave it out: it is for match"
    elif match is not None:
        yield from _name_faults(capitals(parse(match)), prune)
    elif select is None and prune is not None:
        yield f"match is missing; {hint('match')}"
    elif select is None:
        yield f"select is missing; {hint('select')}, or {hint('match').removeprefix('write ')}"


def _name_faults(bound: Sequence[str], prune: Sequence[str] | None) -> Iterator[str]:
    names = ", ".join(f"'{name}'" for name in bound)
    if not bound:
        yield "match binds no parameter; give the one to prune a capital name, as conv2d(_, W)"
    elif prune is None and len(bound) > 1:
        yield f"prune is missing; match binds {names}: name those to prune, as prune = '{bound[0]}'"
    for name in prune or ():
        if bound and name not in bound:
            near = max(bound, key=lambda known: _likeness(known, name))
            mend = f"did you mean '{near}'? Bound: {names}"
            yield f"prune = {show(name)} is not bound in match; {mend}"


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.casefold(), b.casefold()).ratio()
