"""The method classes of torch.nn.utils.prune, for Programs and with fxprune's own masks.

They derive from torch's BasePruningMethod, so that code which checks for it goes on working, but
`apply` masks a Program, and no mask is made by torch's code.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune

from fxprune import tensors
from fxprune.bare import bare_program
from fxprune.compiler import edit, run_stages
from fxprune.errors import PassError, PassTypeError
from fxprune.facts import GivenMasks, Importance, Methods
from fxprune.methods import combined_mask
from fxprune.plan import stage_of
from fxprune.program import Program
from fxprune.ranking import check_amount
from fxprune.recipe import Rule
from fxprune.registry import create

__all__ = [
    "BasePruningMethod",
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "PruningContainer",
    "RandomStructured",
    "RandomUnstructured",
    "apply_globally",
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
        method: Any = cls(*args, **kwargs)
        method._tensor_name = name
        scores = {} if importance_scores is None else {name: importance_scores}
        _mask(module, (name,), method, scores, "local")
        return method

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


class _BuiltIn(BasePruningMethod):
    """A method that is a rule of the recipe."""

    method = ""

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule."""
        kept = ("amount", "n", "dim")
        return {"method": self.method} | {k: v for k, v in vars(self).items() if k in kept}

    # torch declares no return type, which reads as None.
    def compute_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t: torch.Tensor, default_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return `default_mask` with zeros where the method prunes `t`.

        Args:
            t: what is ranked, any shape.
            default_mask: of its shape.
        """
        program = bare_program(t)
        _mask(program, ("t",), self, {}, "local")
        pruned = tensors.masks(program)["t"].to(default_mask.dtype) == 0
        return default_mask.clone(memory_format=torch.contiguous_format).masked_fill_(pruned, 0)


class Identity(_BuiltIn):
    """Prune nothing; the mask is made of ones."""

    method = "identity"


class RandomUnstructured(_BuiltIn):
    """Prune entries at random.

    Args:
        amount: share (float) or count (int) of the living entries.
    """

    method = "random_unstructured"

    def __init__(self, amount: float | int) -> None:
        self.amount = _amount(amount)


class L1Unstructured(_BuiltIn):
    """Prune the entries of smallest magnitude.

    Args:
        amount: share (float) or count (int) of the living entries.
    """

    method = "l1_unstructured"

    def __init__(self, amount: float | int) -> None:
        self.amount = _amount(amount)


class RandomStructured(_BuiltIn):
    """Prune channels at random.

    Args:
        amount: share (float) or count (int) of the living channels.
        dim: the dimension of the channels.
    """

    method = "random_structured"
    PRUNING_TYPE = "structured"

    def __init__(self, amount: float | int, dim: int = -1) -> None:
        self.amount, self.dim = _amount(amount), dim


class LnStructured(_BuiltIn):
    """Prune the channels of smallest Ln norm.

    Args:
        amount: share (float) or count (int) of the living channels.
        n: order of the norm, as `p` of torch.norm.
        dim: the dimension of the channels.
    """

    method = "ln_structured"
    PRUNING_TYPE = "structured"

    def __init__(self, amount: float | int, n: float | str, dim: int = -1) -> None:
        self.amount, self.n, self.dim = _amount(amount), n, dim


class CustomFromMask(_BuiltIn):
    """Join a given mask with the one that is there.

    Args:
        mask: of the parameter's shape.
    """

    method = "custom_from_mask"
    PRUNING_TYPE = "global"

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask


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


# torch's own classes stand for fxprune's; a user's subclass of one is the user's own method.
_OF_TORCH: dict[type[Any], type[_BuiltIn]] = {
    torch_prune.Identity: Identity,
    torch_prune.RandomUnstructured: RandomUnstructured,
    torch_prune.L1Unstructured: L1Unstructured,
    torch_prune.RandomStructured: RandomStructured,
    torch_prune.LnStructured: LnStructured,
    torch_prune.CustomFromMask: CustomFromMask,
}


def apply_globally(
    program: Program,
    names: tuple[str, ...],
    pruning_method: Any,
    scores: Mapping[str, torch.Tensor],
    kwargs: Mapping[str, Any],
) -> None:
    """Rank parameters together by a method class; see `functional.global_unstructured`.

    Raises:
        PassTypeError: the class is no pruning method, or is not unstructured.
    """
    method: Any = (_OF_TORCH.get(pruning_method) or pruning_method)(**kwargs)
    if not isinstance(method, torch_prune.BasePruningMethod):
        raise PassTypeError(f"{pruning_method!r} is no subclass of BasePruningMethod")
    kind = getattr(method, "PRUNING_TYPE", None)
    if kind != "unstructured":
        raise PassTypeError(
            f"global pruning takes methods of PRUNING_TYPE 'unstructured'; "
            f"{type(method).__name__} is {kind!r}"
        )
    _mask(program, names, method, scores, "global")


def _mask(
    program: Any,
    names: tuple[str, ...],
    method: Any,
    scores: Mapping[str, torch.Tensor],
    scope: str,
) -> None:
    if not isinstance(program, Program):
        raise PassTypeError(
            f"this is no Program but a {type(program).__name__}; capture the model first: "
            "program = fxprune.capture(model, args), and name parameters as 'conv1.weight'"
        )
    kind = type(method)
    is_built_in = isinstance(method, _BuiltIn) and kind.compute_mask is _BuiltIn.compute_mask
    imported = {"method": f"{kind.__module__}:{kind.__name__}"}
    keys: dict[str, Any] = method.rule() if is_built_in else imported
    if not is_built_in or method.method != "identity":
        keys["scope"] = scope
    rule = Rule(name="functional", select="*", ties="torch", **keys)
    given: list[Any] = [Importance(scores), Methods({"functional": method})]
    if isinstance(method, CustomFromMask):
        given.append(GivenMasks({names[0]: method.mask}))
    run_stages(program, [stage_of((rule,), names=names)], given, inplace=True)


def _amount(amount: Any) -> float | int:
    check_amount(amount)
    return int(amount) if isinstance(amount, numbers.Integral) else float(amount)
