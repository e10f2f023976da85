"""A recipe as calls of torch.nn.utils.prune's functions, where it has those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxprune.errors import PassError
from fxprune.program import Program
from fxprune.recipe import Recipe, Rule
from fxprune.selecting import verdicts
from fxprune.testing.calls import Call

__all__ = ["calls_of", "counterpart_fault", "with_torchs_ties"]

_GLOBAL = {"l1_unstructured": "l1", "random_unstructured": "random"}
_LOCAL = ("identity", "random_unstructured", "l1_unstructured", "random_structured")
_METHODS = (*_LOCAL, "ln_structured")


def calls_of(program: Program, recipe: Recipe) -> Iterator[tuple[int | None, tuple[Call, ...]]]:
    """Yield the seed and the calls of each rule, or of all rules of a group.

    Args:
        program: says which parameters the rules select.
        recipe: what to put into calls.

    Raises:
        PassError: torch.nn.utils.prune has no counterpart of a rule.
    """
    done: set[str] = set()
    for rule in recipe.rules:
        fault = counterpart_fault(rule)
        if fault is not None:
            raise PassError(f"rule {rule.name!r} cannot be held to torch.nn.utils.prune: {fault}")
        if rule.group in done:
            continue
        rules = [rule]
        if rule.group is not None:
            done.add(rule.group)
            rules = [each for each in recipe.rules if each.group == rule.group]
        names = _selected(program, rules)
        if names:
            yield rule.seed, tuple(_calls(rule, names))


def counterpart_fault(rule: Rule) -> str | None:
    """Return why torch.nn.utils.prune has no counterpart of a rule; None where it has one."""
    if rule.coupled:
        return "torch prunes no channels together"
    if rule.method not in _METHODS:
        return f"its method is {rule.method or rule.score!r}; torch has {', '.join(_METHODS)}"
    return None


def with_torchs_ties(recipe: Recipe) -> Recipe:
    """Return the recipe with `ties = "torch"` in all rules that rank."""
    rules = tuple(
        rule.model_copy(update={"ties": "torch"}) if rule.amount is not None else rule
        for rule in recipe.rules
    )
    return recipe.model_copy(update={"rules": rules})


def _selected(program: Program, rules: Sequence[Rule]) -> list[str]:
    taken = {v.site.name for rule in rules for v in verdicts(program, rule) if v.refusal is None}
    return [name for name in program.aliases if name in taken]


def _calls(rule: Rule, names: Sequence[str]) -> Iterator[Call]:
    method, amount = str(rule.method), 0 if rule.amount is None else rule.amount
    if rule.scope == "global":
        how = _GLOBAL[method]
        yield Call("global_unstructured", tuple(names), amount=amount, method=how, seed=None)
        return
    options = {"n": rule.n} if method == "ln_structured" else {}
    if rule.granularity_name == "channel":
        options["dim"] = rule.dim
    for name in names:
        yield Call(method, (name,), amount=amount, seed=None, **options)  # pyright: ignore
