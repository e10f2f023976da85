"""A mutant: a name, what it replaces, and what it puts there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong, in a few words.
        target: "module:attribute" or "module:Class.attribute".
        change: takes what stands there and returns what is to stand there.
    """

    name: str
    target: str
    change: Callable[[Any], Any]


@contextmanager
def planted(mutant: Mutant) -> Generator[None]:
    """Replace what a mutant replaces, for a while."""
    module, _, path = mutant.target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, attribute)
    setattr(owner, attribute, mutant.change(original))
    try:
        yield
    finally:
        setattr(owner, attribute, original)
