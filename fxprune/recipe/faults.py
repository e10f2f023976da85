"""What is wrong with a recipe, in words: one line a fault, that says where and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

from pydantic import BaseModel, ValidationError

from fxprune.words import LONGEST_SHOWN, choices, hint, nearest, plain, shorten, show

_MOST_FAULTS = 50
_MOST_ITEMS = 4 * _MOST_FAULTS  # of pydantic's; some come to the same fault
_MOST_LEVELS = 32
_PROBLEMS = {
    "bool_type": "is neither true nor false",
    "dict_type": "is not a table",
    "float_type": "is not a number",
    "int_type": "is not a whole number",
    "model_type": "is not a table",
    "string_pattern_mismatch": "does not fit",
    "string_too_long": "is too long",
    "string_too_short": "is empty",
    "string_type": "is not a text",
    "string_unicode": "is not a text",
    "tuple_type": "is not a list",
}


class _Fault(NamedTuple):
    place: str
    text: str
    meant: str = ""  # the known key that an unknown one is close to


def refuse(faults: Iterable[str]) -> None:
    """Raise the texts that are not empty, as a ValueError for pydantic to collect."""
    texts = [fault for fault in faults if fault]
    if texts:
        raise ValueError(*texts)


def explain(
    error: ValidationError, data: Mapping[str, Any], *, model: type[BaseModel], where: str
) -> str:
    """Return one line for each fault of a table, up to a limit; `where` begins each."""
    items = cast("list[dict[str, Any]]", error.errors(include_url=False))
    rules = _rules(data)
    faults = [f for item in items[:_MOST_ITEMS] for f in _faults(item, rules, model)]
    faults += [_Fault("", text) for text in twins(rules)]
    # A misspelt key is one fault, not a missing key as well.
    meant = {(fault.place, f"{fault.meant} is missing") for fault in faults if fault.meant}
    meant |= {(fault.place, "select is missing") for fault in faults if fault.meant == "match"}
    kept = [f for f in faults if (f.place, f.text.partition(";")[0]) not in meant]
    lines = list(dict.fromkeys(f"{where}: {fault.place}{fault.text}" for fault in kept))
    more = len(lines) > _MOST_FAULTS or len(items) > _MOST_ITEMS
    return "\n".join([*lines[:_MOST_FAULTS], *[f"{where}: and more faults"] * more])


def nested_too_deeply(value: object) -> bool:
    """Tell whether dicts and lists are nested deeper than a recipe needs; without recursion."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [inner for item in level for inner in _inside(item)]
    return bool(level)


def rule_names(rules: Sequence[object]) -> list[str]:
    """Return the name of each rule, a table or a Rule; by its position where it has none."""
    return [_name(rule) or f"rule-{at}" for at, rule in enumerate(rules, 1)]


def twins(rules: Sequence[object]) -> Iterator[str]:
    """Yield a text for each rule that has an earlier rule's name."""
    first: dict[str, int] = {}
    for at, name in enumerate(rule_names(rules), 1):
        if first.setdefault(name, at) != at:
            yield f"{label(at, name)}[[rule]] {first[name]} has this name too; give it another"


def label(at: int, name: str) -> str:
    """Return how a line names a rule."""
    shown = shorten(plain(name[: LONGEST_SHOWN + 1])) if name else ""
    return f'[[rule]] {at} "{shown}": ' if name else f"[[rule]] {at}: "


def _faults(
    item: Mapping[str, Any], rules: Sequence[object], model: type[BaseModel]
) -> Iterator[_Fault]:
    place, table, key = _locate(item["loc"], rules, model)
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        yield _unknown(place, key, table)
    elif kind == "value_error":
        # one argument a fault, see `refuse`; that of a pattern has several lines
        yield from (_Fault(place, text) for text in item["ctx"]["error"].args)
    elif kind == "missing":
        yield _Fault(place, f"{key} is missing; {hint(key)}")
    elif kind == "invalid_key":
        yield _Fault(place, f"key {show(value)} is not a text; write it in quotes")
    else:
        head = f"{key} = {show(value)}" if key else show(value)
        of_pass = "pass" if place.startswith("[[pass]]") else ""
        yield _Fault(place, f"{head} {_problem(item, key or of_pass)}")


def _locate(
    loc: Sequence[str | int], rules: Sequence[object], model: type[BaseModel]
) -> tuple[str, type[BaseModel], str]:
    """Return the place as it is printed, its table's class, and the key, of a pydantic loc."""
    place, rest = "", list(loc)
    while len(rest) > 1 and (inner := _inner(model, rest[0])):
        key, model = rest.pop(0), inner
        if isinstance(rest[0], int):
            at = cast("int", rest.pop(0))
            is_pass = key in ("pass", "passes")
            place += f"[[pass]] {at + 1}: " if is_pass else label(at + 1, _name(rules[at]))
        else:
            place += "select: " if key == "select" else f"[{key}]: "
    return place, model, str(rest[0]) if rest else ""


def _inner(model: type[BaseModel], key: str | int) -> type[BaseModel] | None:
    """Return the class of the tables under a key, None if the key holds no table."""
    for name, field in model.model_fields.items():
        kinds = (
            (field.annotation, *get_args(field.annotation)) if key in (name, field.alias) else ()
        )
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                return kind
    return None


def _unknown(place: str, key: str, table: type[BaseModel]) -> _Fault:
    known = [field.alias or name for name, field in table.model_fields.items()]
    kind = "table or key" if "rule" in known else "key"
    close = nearest(key, known)
    mend = f"did you mean '{close}'?" if close else f"known: {', '.join(known)}"
    return _Fault(place, f"unknown {kind} {show(key)}; {mend}", close or "")


def _problem(item: Mapping[str, Any], key: str) -> str:
    kind, value = item["type"], item["input"]
    if key in ("amount", "n"):  # each takes several kinds, and pydantic has a fault for each
        number = isinstance(value, int | float) and not isinstance(value, bool)
        kind = "out_of_range" if number else "float_type"
    if kind == "literal_error":
        return choices(value, re.findall(r"'([^']*)'", item["ctx"]["expected"]))
    return f"{_PROBLEMS.get(kind, 'is out of range')}; {hint(key)}"


def _inside(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return cast("Mapping[object, object]", item).values()
    return cast("list[object]", item) if isinstance(item, list) else ()


def _rules(data: Mapping[str, Any]) -> Sequence[object]:
    rules = data.get("rule", data.get("rules"))
    return cast("Sequence[object]", rules) if isinstance(rules, list | tuple) else ()


def _name(rule: object) -> str:
    if isinstance(rule, Mapping):
        name = cast("Mapping[str, object]", rule).get("name")
    else:
        name = getattr(rule, "name", None)
    return name if isinstance(name, str) else ""
