"""Strategies for recipes: each selects something of a Program, and runs on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from fxprune.errors import PassError, RecipeError
from fxprune.facts import ParamSite
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule
from fxprune.selecting import verdicts
from fxprune.sites import sites_of

__all__ = ["METHODS", "prunable", "recipes"]

METHODS = (
    "l1_unstructured",
    "random_unstructured",
    "ln_structured",
    "random_structured",
    "identity",
)
_STRUCTURED = ("ln_structured", "random_structured")
_SHARES = st.sampled_from([0.5, 0.2, 0.0, 1.0, 0.9]) | st.floats(0.0, 1.0)
_NORMS = (2, 1, "inf", "-inf", 0, 3.5)


def prunable(program: Program) -> list[ParamSite]:
    """Return the parameters that a rule can take: floating, and not refused at capture."""
    refused = program.captured.refused
    return [s for s in sites_of(program) if s.dtype.is_floating_point and s.name not in refused]


@st.composite
def recipes(
    draw: st.DrawFn,
    program: Program,
    *,
    methods: Sequence[str] = METHODS,
    max_rules: int = 3,
    coupled: bool = False,
) -> Recipe:
    """Draw recipes each of whose rules selects something of a Program.

    They shrink towards one plain rule on one parameter.

    Args:
        draw: given by hypothesis.
        program: what the recipes are for.
        methods: methods to draw from, the plainest first.
        max_rules: how many rules there are at most.
        coupled: draw rules with `coupled = true`, from the structured ones of the methods; what
            has no channels to couple is refused when the recipe runs.

    Raises:
        PassError: the Program has no parameter that a rule can take.

    Example:
        >>> import torch, fxprune
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> recipes(program, max_rules=1).validate()  # for hypothesis.given
    """
    sites = prunable(program)
    matrices = [site for site in sites if len(site.shape) > 1]
    if not sites:
        raise PassError("the Program has no parameter that a rule can take; give another one")
    if coupled:
        methods = [method for method in methods if method in _STRUCTURED]
    if not matrices:
        methods = [method for method in methods if method not in _STRUCTURED]
    if not methods:
        raise PassError("none of the methods can prune the Program; give others or another one")
    rules: list[Mapping[str, Any]] = []
    for at in range(draw(st.integers(1, max_rules))):
        method = draw(st.sampled_from(list(methods)))
        pool = matrices if method in _STRUCTURED else sites
        chosen = draw(_selects(program, pool))
        counts = at == 0 and not program.masks
        rules.append(chosen[0] | draw(_how(method, chosen[1], counts=counts, coupled=coupled)))
    return Recipe.from_dict({"rule": rules})


Chosen = tuple[dict[str, Any], list[ParamSite]]


@st.composite
def _selects(draw: st.DrawFn, program: Program, pool: Sequence[ParamSite]) -> Chosen:
    """Draw which parameters a rule takes; all of them are in the pool."""
    site = draw(st.sampled_from(list(pool)))
    forms: list[dict[str, Any]] = [{"select": {"path": [site.name]}}]
    others = draw(st.lists(st.sampled_from(list(pool)), max_size=3, unique_by=lambda s: s.name))
    forms.append({"select": {"path": list(dict.fromkeys([site.name, *(s.name for s in others)]))}})
    forms.append({"select": {"ndim": [len(site.shape)]}})
    forms.append({"select": {"param": [site.name.rpartition(".")[2]]}})
    forms += [{"select": {"module": [module]}} for module in site.modules[:1]]
    for op, role in site.uses[:1]:
        forms.append({"select": {"op": [op], "role": [role]}})
        forms.append({"match": f"{op}(_, W, *)", "prune": ["W"]})
    form = draw(st.sampled_from(forms))
    allowed = {s.name for s in pool}
    taken = _taken(program, form)
    if not taken or not {s.name for s in taken} <= allowed:
        return forms[0], _taken(program, forms[0])
    return form, taken


def _taken(program: Program, form: Mapping[str, Any]) -> list[ParamSite]:
    try:
        rule = Rule.model_validate({**form, "method": "identity"})
    except (RecipeError, ValueError):  # an operator whose name is none in a pattern
        return []
    return [v.site for v in verdicts(program, rule) if v.refusal is None]


@st.composite
def _how(
    draw: st.DrawFn, method: str, taken: Sequence[ParamSite], *, counts: bool, coupled: bool
) -> dict[str, Any]:
    """Draw the keys that say how and how much."""
    made: dict[str, Any] = {"method": method}
    if method == "identity":
        return made
    if coupled:
        made |= {"coupled": True}
    elif method in _STRUCTURED:
        ndim = min(len(site.shape) for site in taken)
        made["dim"] = draw(st.sampled_from([*range(ndim), *range(-ndim, 0)]))
    elif draw(st.booleans()):
        made["scope"] = "global"
    if method == "ln_structured":
        made["n"] = draw(st.sampled_from([2] if coupled else list(_NORMS)))
    if method.startswith("random"):
        made |= draw(st.sampled_from([{}, {"seed": 0}, {"seed": 7}]))
    elif not coupled:
        made |= draw(st.sampled_from([{}, {"ties": "torch"}]))
    most = min(min(site.shape) if method in _STRUCTURED else site.numel for site in taken)
    whole = st.integers(0, min(most, 4)) if counts and not coupled else _SHARES
    made["amount"] = draw(_SHARES | whole)
    return made
