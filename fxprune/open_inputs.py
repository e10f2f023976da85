"""What a Program takes that was captured without an example: names and defaults, no shapes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.errors import InputError
from fxprune.inputs import Input, InputSpec
from fxprune.nesting import Nesting

__all__ = ["OpenSpec"]


@dataclass(frozen=True)
class OpenSpec(InputSpec):
    """Arguments whose shapes are not known; each is handed to the graph as it is.

    Args:
        defaults: the values of arguments that may be left out.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, names: tuple[str, ...], defaults: Mapping[str, Any]) -> OpenSpec:
        """Return the spec of a forward with these arguments."""
        inputs = tuple(Input(name) for name in names)
        nesting = Nesting(((None,) * len(names), {}))
        return cls(inputs, nesting, names, (), defaults=dict(defaults))

    @property
    def drawable(self) -> bool:
        """Whether inputs can be drawn: not without shapes."""
        return False

    def __str__(self) -> str:
        return ", ".join(f"{name}: any" for name in self.names)

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments, in order."""
        return [*args, *kwargs.values()]

    def example(
        self,
        *,
        batch: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raise an InputError, since nothing is known to draw."""
        raise InputError(
            f"the shapes of {', '.join(self.names)} are not known, since the program was captured "
            "from a traced graph without an example; capture that graph with args= and kwargs="
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions: none is known."""
        return ()

    @property
    def signature(self) -> inspect.Signature:
        """The signature of forward, with `self`."""
        kinds = inspect.Parameter
        parameters = [
            kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=self.defaults.get(name, kinds.empty))
            for name in ("self", *self.names)
        ]
        return inspect.Signature(parameters)
