"""How values are nested in tuples, lists, dicts and dataclasses, in a form that pickles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

__all__ = ["Nesting"]


class Nesting:
    """The structure of a value, kept as the value with its leaves numbered.

    Args:
        skeleton: any nested value; its leaves do not matter.

    Attributes:
        tree: the structure as torch's pytree.

    Example:
        >>> nesting = Nesting({"a": None, "b": [True]})
        >>> nesting.unflatten(["x", "y"])
        {'a': 'x', 'b': ['y']}
    """

    def __init__(self, skeleton: Any) -> None:
        self.tree = pytree.tree_structure(skeleton)
        numbers = list(range(self.tree.num_leaves))
        self.skeleton = pytree.tree_unflatten(numbers, self.tree)

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the structure with these leaves."""
        return pytree.tree_unflatten(list(leaves), self.tree)

    def __reduce__(self) -> tuple[Any, ...]:
        return Nesting, (self.skeleton,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Nesting:
        return self
