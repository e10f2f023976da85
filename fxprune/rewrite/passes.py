"""What a pass is: a frozen dataclass that needs and gives facts, an Analysis or a Rewrite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from fxprune.errors import PassError
from fxprune.program import Program
from fxprune.rewrite.rewriter import Rewriter

# One rounding of a number to float32 moves it by up to 6e-8 of its size, so a changed weight shows.
# Sums of a million float64 numbers in another order differ by about 1e-10, so that does not.
BOUND = 1e-9

F = TypeVar("F")


class Facts:
    """Facts by their type: what the passes of one rule hand to each other."""

    def __init__(self, given: Iterable[Any] = ()) -> None:
        self._facts: dict[type[Any], Any] = {type(fact): fact for fact in given}

    def __getitem__(self, kind: type[F]) -> F:
        if kind not in self._facts:
            raise PassError(f"no pass gave a {kind.__name__}; run one that gives it before")
        return self._facts[kind]

    def get(self, kind: type[F]) -> F | None:
        """Return a fact, or None where there is none of its type."""
        return self._facts.get(kind)

    def put(self, fact: Any) -> None:
        """Add a fact, in the place of an earlier one of its type."""
        self._facts[type(fact)] = fact

    @property
    def kinds(self) -> set[type[Any]]:
        """The types that are there."""
        return set(self._facts)


class Pass(ABC):
    """A step of a pipeline; a frozen dataclass whose fields are its options.

    Attributes:
        name: the name in the registry.
        needs: types of facts that earlier passes must have given.
        gives: types of facts that it gives.
        promise: "same": a rewrite leaves every output as it is, bit for bit, the keys, and what
            is trained; "close": outputs of float64 copies differ by `bound` at most; it is held to
            that. "changes": outputs may differ.
        bound: of "close", as `fxprune.verify` takes it.
    """

    name: ClassVar[str]
    promise: ClassVar[str] = "changes"
    bound: ClassVar[float] = BOUND
    needs: ClassVar[tuple[type[Any], ...]] = ()
    gives: ClassVar[tuple[type[Any], ...]] = ()


class Analysis(Pass):
    """A pass that finds out a fact and edits nothing."""

    @abstractmethod
    def run(self, program: Program, facts: Facts) -> Any:
        """Return the fact, of the type that `gives` names."""


class Rewrite(Pass):
    """A pass that edits the Program, through the Rewriter alone.

    Attributes:
        effect: what it does, which a compile checks: "masks", "folds", "unmasks", "adopts",
            "cuts", "constants" (see `fxprune.verification.snapshot.Effect`), or "anything".
    """

    effect: ClassVar[str] = "anything"

    @abstractmethod
    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Edit the Program."""
