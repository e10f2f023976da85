"""How values are nested in tuples, lists, dicts and dataclasses, in a form that pickles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["Nesting"]


class Nesting:
    """The structure of a value, kept as the value with its leaves numbered.

    Args:
        skeleton: any nested value; its leaves do not matter.

    Example:
        >>> nesting = Nesting({"a": None, "b": [True]})
        >>> nesting.unflatten(["x", "y"])
        {'a': 'x', 'b': ['y']}
    """

    def __init__(self, skeleton: Any) -> None:
        tree = pytree.tree_structure(skeleton)
        self.skeleton = pytree.tree_unflatten(list(range(tree.num_leaves)), tree)

    @cached_property
    def tree(self) -> pytree.TreeSpec:
        """The structure as torch's pytree."""
        return pytree.tree_structure(self.skeleton)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the structure with these leaves."""
        return pytree.tree_unflatten(list(leaves), self.tree)

    def __reduce__(self) -> tuple[Any, ...]:
        return Nesting, (self.skeleton,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Nesting:
        return self
