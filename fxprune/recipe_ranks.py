"""How a rule ranks: by which score and of what; and which keys go with that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from fxprune.catalog import described, pass_fault, score_fault
from fxprune.recipe_errors import hint, show

__all__ = [
    "DEFAULTS",
    "LIMITS",
    "METHODS",
    "SCORES",
    "GranularityName",
    "data_fault",
    "how_fault",
    "is_foreign",
    "misfit",
    "options_fault",
    "parts",
    "score_name_fault",
]

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
    """The score and the granularity that a method is short for, or those in its place."""
    return METHODS.get(method, (None, None)) if method else (score, granularity)


def how_fault(method: str | None, score: str | None, granularity: str | None) -> str:
    """What is wrong with a rule's method, score and granularity together; "" for nothing."""
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
    """What is wrong with having, or not having, a key beside the rule's method; "" for nothing."""
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
    """Whether a score is that of another distribution."""
    return score is not None and score not in SCORES


def score_name_fault(score: str | None) -> str:
    """What is wrong with the name of a score; "" for nothing."""
    fault = score_fault(score, SCORES) if score is not None and is_foreign(score) else ""
    return f"score = {show(score)} {fault}" if fault else ""


def data_fault(args: Mapping[str, Any]) -> str:
    """What is wrong with arguments that no file can hold; "" for nothing."""
    try:
        same = json.loads(json.dumps(args, allow_nan=False)) == args
    except (TypeError, ValueError, RecursionError):
        same = False
    return "" if same else "args holds more than data; give texts, finite numbers, lists and tables"


def options_fault(score: str | None, granularity: str | None, args: Mapping[str, Any]) -> str:
    """What is wrong with the options of another distribution's score; "" for nothing.

    Such a score ranks channels where it has an option `dim`, and elements where it has none or may
    go without it.
    """
    if score is None or not is_foreign(score):
        return ""
    options = described(score).options
    if granularity == "channel" and "dim" not in options:
        return f"score = {show(score)} ranks elements; give granularity = 'element'"
    if granularity == "element" and options.get("dim") is not None:
        return f"score = {show(score)} ranks channels; give granularity = 'channel'"
    return pass_fault(score, args, own=("dim",))
