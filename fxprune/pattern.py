"""Patterns over a Program's nodes, written as expressions over canonical operator names.

    relu(batch_norm(conv2d(_, W, groups=1)))

`_` is anything; a capital name binds a parameter that the graph reads, masked or not; a small
name binds any argument; a keyword constrains or binds the argument of that role, its default where
the call leaves it out; `*` says that more arguments may follow, and in a list, `[*, relu(_)]`, it
takes the other entries. `(relu|gelu)(x)` and `relu|gelu(x)` are either operator,
`relu(x) | gelu(y)` is either pattern. The operands of commutative operators stand in either order.
What a match reads inside of itself must have no other users, unless its call is marked,
`conv2d(_, W)!`. A name that stands twice must be the same both times: one node, one parameter, or
equal constants.
"""

from __future__ import annotations

from fxprune.pattern_match import match, matches
from fxprune.pattern_parse import parse
from fxprune.pattern_parts import (
    Anything,
    Call,
    Constant,
    Either,
    Listed,
    Match,
    Name,
    Pattern,
    Refusal,
)

__all__ = [
    "Anything",
    "Call",
    "Constant",
    "Either",
    "Listed",
    "Match",
    "Name",
    "Pattern",
    "Refusal",
    "match",
    "matches",
    "parse",
]
