"""What the method classes of `fxprune.functional` share: they mask Programs by one-rule recipes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune

from fxprune import tensors
from fxprune.compiler import edit, run_stages
from fxprune.errors import PassError, PassTypeError
from fxprune.facts import GivenMasks, Importance, Methods
from fxprune.methods import combined_mask
from fxprune.program import Program
from fxprune.recipe import Rule
from fxprune.registry import create
from fxprune.stages import stage_of

__all__ = [
    "BasePruningMethod",
    "PruningContainer",
    "check_module",
    "imported_rule",
    "mask_parameters",
]


class BasePruningMethod(torch_prune.BasePruningMethod):
    """The base of pruning methods; a subclass has PRUNING_TYPE and `compute_mask`.

    `compute_mask(t, default_mask)` gets what is alive of a parameter and of its mask, as in
    torch.nn.utils.prune.
    """

    PRUNING_TYPE = "unstructured"

    @classmethod
    def apply(
        cls,
        module: Program,
        name: str,
        *args: Any,
        importance_scores: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Mask one parameter of a Program in place, and return the method.

        Args:
            module: the Program.
            name: the parameter's full name.
            *args: arguments of the class.
            importance_scores: of the parameter's shape; the method gets them in its place.
            **kwargs: arguments of the class.
        """
        # torch's own methods take the scores by position, too: behind the arguments of the class.
        if importance_scores is None and len(args) > len(inspect.signature(cls).parameters):
            args, importance_scores = args[:-1], args[-1]
        method: Any = cls(*args, **kwargs)
        if isinstance(method, PruningContainer):
            raise PassError(
                "a PruningContainer combines methods that were applied; apply these one by one"
            )
        method._tensor_name = name
        scores = {} if importance_scores is None else {name: importance_scores}
        mask_parameters(module, (name,), method, scores, "local")
        return method

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule that stands for this method."""
        return imported_rule(self)

    def apply_mask(self, module: Program) -> torch.Tensor:
        """Return the masked parameter, with its gradient."""
        return tensors.masks(module)[self._tensor_name] * tensors.parameter(
            module, self._tensor_name
        )

    def remove(self, module: Program) -> None:
        """Fold the mask into the parameter."""
        edit(
            module, create("finalize", names=(self._tensor_name,), source_order=False), inplace=True
        )


class PruningContainer(BasePruningMethod):
    """Methods on one parameter, of which the last computes the mask of what is still alive.

    Args:
        *args: the methods, in order.
    """

    def __init__(self, *args: Any) -> None:
        self._pruning_methods: tuple[Any, ...] = ()
        if args:
            self._tensor_name = args[0]._tensor_name
        for method in args:
            self.add_pruning_method(method)

    def add_pruning_method(self, method: Any) -> None:
        """Add a method for the same parameter.

        Raises:
            PassTypeError: it is no pruning method.
            PassError: it is for another parameter.
        """
        if not isinstance(method, torch_prune.BasePruningMethod):
            raise PassTypeError(f"{type(method).__name__} is no subclass of BasePruningMethod")
        if method._tensor_name != self._tensor_name:
            raise PassError(
                f"this container is for {self._tensor_name!r}, the method for "
                f"{method._tensor_name!r}"
            )
        self._pruning_methods += (method,)

    def __len__(self) -> int:
        return len(self._pruning_methods)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pruning_methods)

    def __getitem__(self, index: int) -> Any:
        return self._pruning_methods[index]

    def compute_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t: torch.Tensor, default_mask: torch.Tensor
    ) -> torch.Tensor:
        """Let the last method mask what `default_mask` leaves alive of `t`."""
        return combined_mask(self._pruning_methods[-1], t, default_mask)


def mask_parameters(
    program: Any,
    names: tuple[str, ...],
    method: Any,
    scores: Mapping[str, torch.Tensor],
    scope: str,
) -> None:
    """Mask parameters of a Program in place by one method, as a one-rule recipe.

    Args:
        program: the Program.
        names: full names, in the order in which they are ranked.
        method: an instance of a pruning method, fxprune's or a user's.
        scores: importance scores by name.
        scope: "local" or "global".

    Raises:
        PassTypeError: `program` is no Program.
    """
    check_module(program)
    keys = method.rule() if isinstance(method, BasePruningMethod) else imported_rule(method)
    if keys["method"] != "identity":
        keys["scope"] = scope
    rule = Rule(name="functional", select="*", ties="torch", **keys)
    given: list[Any] = [Importance(scores), Methods({"functional": method})]
    if keys["method"] == "custom_from_mask":
        given.append(GivenMasks({names[0]: vars(method)["mask"]}))
    stage = stage_of((rule,), names=names, rejoin=scope == "global")
    run_stages(program, [stage], given, inplace=True)


def check_module(module: Any) -> None:
    """Check that a function of torch.nn.utils.prune's name was handed a Program.

    Raises:
        PassTypeError: it was handed something else.
    """
    if not isinstance(module, Program):
        raise PassTypeError(
            f"this is no Program but a {type(module).__name__}; capture the model first: "
            "program = fxprune.capture(model, args), and name parameters as 'conv1.weight'"
        )


def imported_rule(method: Any) -> dict[str, Any]:
    """Return the rule's keys for a class that the recipe knows by its module and name only."""
    kind = type(method)
    return {"method": f"{kind.__module__}:{kind.__name__}"}
