"""Where equal scores are at the threshold, two ways to choose prune as many, and as large ones."""

from __future__ import annotations

import torch

from fxprune.compiler import prune
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.testing.comparing import DifferenceError, difference

__all__ = ["assert_alike_but_for_ties"]


def assert_alike_but_for_ties(program: Program, recipe: Recipe, masked: Program) -> None:
    """Run a recipe with its own ties; what goes is as much, and as large, as with torch's.

    Recipes of one magnitude rule alone are compared: what a later rule sees depends on which of
    the equal ones went.

    Args:
        program: what to prune; not changed.
        recipe: as it was written.
        masked: the Program as the recipe left it with torch's ties.

    Raises:
        DifferenceError: the counts or the magnitudes differ.
    """
    rule = recipe.rules[0]
    if len(recipe.rules) > 1 or rule.ties == "torch" or rule.method != "l1_unstructured":
        return
    if not masked.masks:
        return
    found = prune(program, recipe)
    names = [list(masked.masks)] if rule.scope == "global" else [[name] for name in masked.masks]
    for together in names:
        ours, torchs = _pruned(found, together), _pruned(masked, together)
        told = difference(ours, torchs)
        if told is not None:
            raise DifferenceError(
                f"the magnitudes pruned of {', '.join(together)} with ties = 'index': {told} "
                "(fxprune first, then torch)"
            )


def _pruned(program: Program, names: list[str]) -> torch.Tensor:
    gone = [program.parameter(k)[program.masks[k] == 0].detach().abs().double() for k in names]
    return torch.cat([part.flatten() for part in gone]).sort().values
