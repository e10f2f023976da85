"""`Rule`: what to prune, how, and how much of it; and which keys go with which method."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator

from fxprune.recipe.faults import label, refuse, rule_names
from fxprune.recipe.select import (
    Count,
    Names,
    ReadOptions,
    Select,
    Table,
    Word,
    choice_faults,
    one_or_more,
)
from fxprune.rewrite import describe, parse, pass_fault, score_fault
from fxprune.words import choices, hint, show

SCORES = ("magnitude", "norm", "random")
GranularityName = Literal["element", "channel"]

# Each method of torch.nn.utils.prune is short for a score and a granularity.
METHODS: dict[str, tuple[str | None, GranularityName | None]] = {
    "identity": (None, None),
    "random_unstructured": ("random", "element"),
    "l1_unstructured": ("magnitude", "element"),
    "random_structured": ("random", "channel"),
    "ln_structured": ("norm", "channel"),
    "custom_from_mask": (None, None),
}
# Limits of each layer in a rule with coupled = true, and what its scores are measured by.
LIMITS = ("min_keep", "max_share", "round_to")
DEFAULTS: dict[str, object] = {
    "args": {},
    "coupled": False,
    "max_share": 1.0,
    "min_keep": 1,
    "normalize": "size",
    "round_to": 1,
    "scope": "local",
    "ties": "index",
}
_USERS = {
    "amount": "methods that rank or draw",
    "args": 'methods of the form "package.module:Class" and scores of other distributions',
    "coupled": "structured methods, as ln_structured",
    "dim": "structured methods",
    "mask": "custom_from_mask",
    "max_share": "rules with coupled = true",
    "min_keep": "rules with coupled = true",
    "n": "the norm score, as in ln_structured",
    "normalize": "norms in rules with coupled = true",
    "round_to": "rules with coupled = true",
    "seed": "random methods",
}
_NOT_GLOBAL = {
    "channel": "channels differ in size from one parameter to the next, so one ranking is not fair "
    "(coupled = true ranks them by the size of all that goes with them)",
    None: "this method ranks nothing",
}
# What rules with coupled = true leave no choice of.
_ONLY: dict[str, object] = {"dim": 0, "ties": "index"}
_ONLY_TEXT = {
    "dim": "leave it out: channels are those that each parameter makes",
    "ties": "leave it out: among equal scores the first goes",
}
_PAIRS = {
    ("magnitude", "channel"): "score = 'magnitude' ranks elements; for channels give "
    "score = 'norm' and n = 1",
    ("norm", "element"): "score = 'norm' ranks channels; for elements give score = 'magnitude'",
}


def parts(
    method: str | None, score: str | None, granularity: GranularityName | None
) -> tuple[str | None, GranularityName | None]:
    """Return the score and the granularity that a method is short for, or those in its place."""
    return METHODS.get(method, (None, None)) if method else (score, granularity)


def how_fault(method: str | None, score: str | None, granularity: str | None) -> str:
    """Return what is wrong with method, score and granularity together; "" for nothing."""
    if method and (score or granularity):
        return f"method = {show(method)} says how to rank; leave score and granularity out"
    if not (method or score or granularity):
        return f"method is missing; {hint('method')}"
    if score and not granularity:
        return "granularity is missing; give granularity = 'element' or 'channel'"
    if granularity and not score:
        return "score is missing; give score = 'magnitude', 'norm' or 'random'"
    return _PAIRS.get((score or "", granularity or ""), "")


def misfit(
    key: str,
    value: object,
    method: str | None,
    ranks: tuple[str | None, GranularityName | None],
    *,
    from_data: bool,
    coupled: bool = False,
) -> str:
    """Return what is wrong with a key, or its absence, beside the method; "" for nothing."""
    score, granularity = ranks
    own = ":" in (method or "")
    takes = {
        "amount": own or score is not None,
        "args": own or is_foreign(score),
        "coupled": granularity == "channel",
        "dim": granularity == "channel",
        "mask": method == "custom_from_mask",
        "n": score == "norm",
        "normalize": coupled and score == "norm",
        "scope": own or granularity == "element" or coupled,
        "seed": own or score == "random",
        **dict.fromkeys(LIMITS, coupled),
    }
    needs = {
        "amount": score is not None,
        "mask": takes["mask"] and from_data,  # Python may hand the mask over beside the recipe
        "n": takes["n"],
    }
    if value is None or (key in DEFAULTS and value == DEFAULTS[key]):
        return f"{key} is missing; {hint(key)}" if needs.get(key) else ""
    if coupled and key in _ONLY and value != _ONLY[key]:
        return f"{key} = {show(value)} does not go with coupled = true; {_ONLY_TEXT[key]}"
    if takes.get(key, True):
        return ""
    what = f"method = {show(method)}" if method else f"score = {show(score)}"
    if key == "scope":
        return f"scope = 'global' does not go with {what}; leave it out: {_NOT_GLOBAL[granularity]}"
    return f"{key} does not go with {what}; leave it out: it is for {_USERS[key]}"


def is_foreign(score: str | None) -> bool:
    """Tell whether a score is that of another distribution."""
    return score is not None and score not in SCORES


def score_name_fault(score: str | None) -> str:
    """Return what is wrong with the name of a score; "" for nothing."""
    fault = score_fault(score, SCORES) if score is not None and is_foreign(score) else ""
    return f"score = {show(score)} {fault}" if fault else ""


def data_fault(args: Mapping[str, Any]) -> str:
    """Return what is wrong with arguments that no file can hold; "" for nothing."""
    try:
        same = json.loads(json.dumps(args, allow_nan=False)) == args
    except (TypeError, ValueError, RecursionError):
        same = False
    return "" if same else "args holds more than data; give texts, finite numbers, lists and tables"


def options_fault(score: str | None, granularity: str | None, args: Mapping[str, Any]) -> str:
    """Return what is wrong with the options of another distribution's score; "" for nothing.

    Such a score ranks channels where it has an option `dim`, and elements where it has none or may
    go without it.
    """
    if score is None or not is_foreign(score):
        return ""
    options = describe(score).options
    if granularity == "channel" and "dim" not in options:
        return f"score = {show(score)} ranks elements; give granularity = 'element'"
    if granularity == "element" and options.get("dim") is not None:
        return f"score = {show(score)} ranks channels; give granularity = 'channel'"
    return pass_fault(score, args, own=("dim",))


_OF_METHODS = ("amount", "n", "dim", "mask", "scope", "seed", "args", *LIMITS)
_IMPORTS = (
    "runs code; if you trust it, allow it with Recipe.load(..., allow_imports=True) "
    "or --allow-imports"
)
_CLASS = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"
_CONTROLS = r"\u0000-\u001f\u007f"
# What a JSON Schema says for \p{C}, \p{Zl} and \p{Zp}, which not every dialect of regular
# expressions has, for the characters that are assigned and occur.
_UNPRINTED = _CONTROLS + r"-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff"
_TEXT = {"type": "string", "minLength": 1}

_Line = Annotated[
    str,
    Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$", max_length=200),
    WithJsonSchema({**_TEXT, "maxLength": 200, "not": {"pattern": f"[{_UNPRINTED}]"}}),
]
_File = Annotated[
    str,
    Field(pattern=r"^[^\p{C}]+\.(safetensors|pt|pth|bin)$"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^.+\.(safetensors|pt|pth|bin)$",
            "not": {"pattern": f"[{_CONTROLS}]"},
        }
    ),
]
_Pattern = Annotated[str, WithJsonSchema(_TEXT)]
_Method = Annotated[
    str,
    WithJsonSchema({"anyOf": [{"enum": [*METHODS]}, {"type": "string", "pattern": f"^{_CLASS}$"}]}),
]
_Score = Annotated[str, WithJsonSchema({"anyOf": [{"enum": [*SCORES]}, _TEXT]})]
_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Least = Annotated[int, Field(ge=1, lt=2**63)]
_Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Rule(Table):
    """What to prune, how, and how much of it.

    Args:
        name: Unique in its recipe; by default "rule-1" and so on, by position.
        select: A Select, its keys as a dict, or globs on the full name.
        match: In place of `select`: a pattern over the graph, see `fxprune.rewrite`.
        prune: With `match`: the names in the pattern whose parameters are taken.
        method: A method of torch.nn.utils.prune, or "package.module:Class".
        score: In place of `method`: "magnitude", "norm", "random", or another distribution's.
        granularity: With `score`: "element" or "channel".
        coupled: With a structured method: channels go with all that is tied to them.
        amount: How much of what is alive: a float is a share, an int a count.
        n: The order of the norm, as torch.norm takes it.
        dim: The dimension of the channels; by default the last one.
        mask: A .safetensors, .pt, .pth or .bin file, for custom_from_mask; see `fxprune.files`.
        scope: "local", or "global": all the rule's parameters are ranked together.
        group: With scope "global": the rules of a group share one budget.
        min_keep: With `coupled`: how many channels of each layer stay at least.
        max_share: With `coupled`: which share of each layer's channels goes at most.
        round_to: With `coupled`: each layer keeps multiples of so many channels.
        normalize: With `coupled`: by what norms are divided, "size", "flops" or "none".
        optional: Whether the rule may select nothing.
        ties: Which of equal scores goes first: that of lower "index", or "torch"'s choice.
        seed: Of a private generator; without it torch's global generator draws.
        args: Keyword arguments of an imported class, or options of another distribution's score.

    Raises:
        RecipeError: A key is unknown, missing, out of range or does not go with the method.

    Example:
        >>> rule = Rule(select="conv1.weight", method="ln_structured", n=2, amount=0.3)
        >>> rule.score_name, rule.granularity_name, rule.dim
        ('norm', 'channel', -1)
    """

    __init__ = Table.__init__

    name: _Line = ""
    select: Select | None = None
    match: _Pattern | None = None
    prune: Names | None = Field(default=None, validate_default=True)
    method: _Method | None = None
    score: _Score | None = None
    granularity: GranularityName | None = Field(default=None, validate_default=True)
    coupled: bool = False
    amount: Count | _Share | None = Field(default=None, validate_default=True)
    n: _Whole | float | Literal["fro", "nuc", "inf", "-inf"] | None = Field(
        default=None, validate_default=True
    )
    dim: _Whole | None = Field(default=None, validate_default=True)
    mask: _File | None = Field(default=None, validate_default=True)
    scope: Literal["local", "global"] = "local"
    group: _Line | None = None
    min_keep: _Least = 1
    max_share: _Share = 1.0
    round_to: _Least = 1
    normalize: Literal["size", "flops", "none"] = "size"
    optional: bool = False
    ties: Literal["index", "torch"] = "index"
    seed: _Seed | None = None
    args: dict[str, Any] = Field(default_factory=dict[str, Any], validate_default=True)

    @property
    def imported(self) -> bool:
        """Whether the method is a class to import."""
        return ":" in (self.method or "")

    @property
    def score_name(self) -> str | None:
        """The score that ranks; None for identity, custom_from_mask and imported classes."""
        return parts(self.method, self.score, self.granularity)[0]

    @property
    def granularity_name(self) -> GranularityName | None:
        """What is ranked; None where `score_name` is."""
        return parts(self.method, self.score, self.granularity)[1]

    @field_validator(
        "select", mode="before", json_schema_input_type=Select | one_or_more(Word) | None
    )
    @classmethod
    def _shorthand(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str | list | tuple) else value

    @field_validator("match")
    @classmethod
    def _is_a_pattern(cls, match: str | None) -> str | None:
        if match is not None:
            parse(match, where="match")
        return match

    @field_validator("prune")
    @classmethod
    def _chooses(cls, prune: tuple[str, ...] | None, info: ValidationInfo) -> object:
        if {"select", "match"} <= info.data.keys():
            refuse(choice_faults(info.data["select"], info.data["match"], prune))
        return prune

    @field_validator("method")
    @classmethod
    def _known(cls, method: str | None, info: ValidationInfo) -> str | None:
        reading = cast("ReadOptions | None", info.context)
        if method is None or method in METHODS:
            return method
        if not re.fullmatch(_CLASS, method):
            refuse(
                [f'method = {show(method)} {choices(method, [*METHODS])}, "package.module:Class"']
            )
        if reading and not reading.allow_imports:
            refuse([f"method = {show(method)} {_IMPORTS}"])
        return method

    @field_validator("score")
    @classmethod
    def _ranks(cls, score: str | None) -> str | None:
        refuse([score_name_fault(score)])
        return score

    @field_validator("granularity")
    @classmethod
    def _says_how(cls, granularity: GranularityName | None, info: ValidationInfo) -> object:
        if {"method", "score"} <= info.data.keys():
            refuse([how_fault(info.data["method"], info.data["score"], granularity)])
        return granularity

    @field_validator("amount", "n", mode="before")
    @classmethod
    def _is_simple(cls, value: object, info: ValidationInfo) -> object:
        key = str(info.field_name)
        if not isinstance(value, int | float | str | None):  # pydantic takes a tensor for a float
            refuse([f"{key} = {show(value)} is not a number; {hint(key)}"])
        return value

    @field_validator("n", mode="before")
    @classmethod
    def _order(cls, value: object) -> object:
        if isinstance(value, float) and math.isnan(value):
            refuse([f"n = nan is out of range; {hint('n')}"])
        return float(value) if isinstance(value, str) and value in ("inf", "-inf") else value

    @field_validator("mask", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("mask")
    @classmethod
    def _beside_the_recipe(cls, mask: str | None, info: ValidationInfo) -> str | None:
        reading = cast("ReadOptions | None", info.context)
        if mask is None or reading is None or reading.folder is None:
            return mask
        return os.path.abspath(reading.folder / mask)

    @field_validator("coupled", "normalize", "ties", *_OF_METHODS)
    @classmethod
    def _suits(cls, value: object, info: ValidationInfo) -> object:
        data, key = info.data, str(info.field_name)
        if not {"method", "score", "granularity"} <= data.keys():
            return value  # the method itself is at fault
        ranks = parts(data["method"], data["score"], data["granularity"])
        reading = cast("ReadOptions | None", info.context)
        from_data = reading is not None and not reading.gives_masks
        coupled = bool(data.get("coupled"))
        fault = misfit(key, value, data["method"], ranks, from_data=from_data, coupled=coupled)
        refuse([fault])
        if key == "dim" and value is None and ranks[1] == "channel":
            return 0 if coupled else -1
        return value

    @field_validator("group")
    @classmethod
    def _is_global(cls, group: str | None, info: ValidationInfo) -> str | None:
        if group is not None and info.data.get("scope") == "local":
            refuse([f"group = {show(group)} needs scope = 'global'; add it or leave group out"])
        return group

    @field_validator("args")
    @classmethod
    def _fit(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        data = info.data
        refuse([data_fault(args)])
        if {"score", "granularity"} <= data.keys():
            refuse([options_fault(data["score"], data["granularity"], args)])
        return args


def group_faults(rules: Sequence[Rule]) -> Iterator[str]:
    """Yield a text for each key in which a rule differs from the first of its group."""
    first: dict[str, tuple[int, dict[str, object]]] = {}
    for at, (rule, name) in enumerate(zip(rules, rule_names(rules), strict=True), 1):
        if rule.group is None:
            continue
        budget = _budget(rule)
        start, shared = first.setdefault(rule.group, (at, budget))
        for key in [key for key in budget if budget[key] != shared[key]]:
            yield (
                f"{label(at, name)}{key} differs from that of [[rule]] {start}, which is in group "
                f"{show(rule.group)} too; make them equal or name another group"
            )


def _budget(rule: Rule) -> dict[str, object]:
    """Return what the rules of a group must have in common."""
    ranks = rule.method if rule.imported else (rule.score_name, rule.granularity_name)
    return {
        "method": ranks,
        "amount": (type(rule.amount), rule.amount),  # a count of 1 is not a share of 1.0
        "ties": rule.ties,
        "seed": rule.seed,
        "args": rule.args,
        "coupled": rule.coupled,
        "normalize": rule.normalize,
        **{limit: getattr(rule, limit) for limit in LIMITS},
    }
