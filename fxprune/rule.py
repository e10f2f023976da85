"""Rewrite rules: a pattern and a function that edits what it matched, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.fx.node import Node

from fxprune.pattern import Pattern, Refusal, parse

if TYPE_CHECKING:
    from fxprune.rewriter import Rewriter

__all__ = ["Rewrite", "RewriteRule", "rule"]

# Takes the rewriter, the matched node and the pattern's bindings by name.
Rewrite = Callable[..., Node | Refusal]


@dataclass(frozen=True)
class RewriteRule:
    """A pattern and the function that rewrites its matches.

    Args:
        name: stamped on every node that the rule makes.
        pattern: what the rule looks for.
        rewrite: called as `rewrite(rewriter, node, **bindings)`; returns the node that stands for
            the match afterwards, or a Refusal.
    """

    name: str
    pattern: Pattern
    rewrite: Rewrite

    def __call__(self, rewriter: Rewriter, node: Node, bindings: dict[str, Any]) -> Node | Refusal:
        """Rewrite one match."""
        return self.rewrite(rewriter, node, **bindings)


def rule(pattern: str, *, name: str) -> Callable[[Rewrite], RewriteRule]:
    """Make a rewrite rule of the function below it.

    Args:
        pattern: an expression in the language of `fxprune.pattern`.
        name: the rule's name, in the report and on the nodes it makes.

    Example:
        >>> @rule("relu(x)", name="no-relu")
        ... def no_relu(rw, node, x):
        ...     return Refusal("relu is wanted", node)
        >>> no_relu.name
        'no-relu'
    """
    parsed = parse(pattern)
    return lambda function: RewriteRule(name, parsed, function)
