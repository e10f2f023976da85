"""The method classes of torch.nn.utils.prune, for Programs and with fxprune's own masks.

They derive from torch's BasePruningMethod, so that code which checks for it goes on working, but
`apply` masks a Program, and no mask is made by torch's code.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune

from fxprune import tensors
from fxprune.bare import bare_program
from fxprune.errors import PassTypeError, ShapeError
from fxprune.functional_base import BasePruningMethod, imported_rule, mask_parameters
from fxprune.program import Program
from fxprune.ranking import check_amount

__all__ = [
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "RandomStructured",
    "RandomUnstructured",
    "apply_globally",
]


class _BuiltIn(BasePruningMethod):
    """A method that is a rule of the recipe."""

    method = ""

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule."""
        if type(self).compute_mask is not _BuiltIn.compute_mask:
            return super().rule()
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
        mask_parameters(program, ("t",), self, {}, "local")
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
        self.amount, self.dim = _amount(amount), _dim(dim)


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
        self.amount, self.n, self.dim = _amount(amount), n, _dim(dim)


class CustomFromMask(_BuiltIn):
    """Join a given mask with the one that is there.

    Args:
        mask: of the parameter's shape.
    """

    method = "custom_from_mask"
    PRUNING_TYPE = "global"

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def compute_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t: torch.Tensor, default_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the product of the two masks.

        Raises:
            ShapeError: they differ in shape.
        """
        if self.mask.shape != default_mask.shape:
            raise ShapeError(
                f"the masks differ in shape: {tuple(self.mask.shape)} and "
                f"{tuple(default_mask.shape)}"
            )
        return default_mask * self.mask.to(default_mask.dtype)

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule."""
        own = type(self).compute_mask is CustomFromMask.compute_mask
        return {"method": self.method} if own else imported_rule(self)


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
    mask_parameters(program, names, method, scores, "global")


def _dim(dim: Any) -> int:
    if not isinstance(dim, int):
        raise PassTypeError(f"dim={dim!r} must be an int: the dimension of the channels")
    return dim


def _amount(amount: Any) -> float | int:
    check_amount(amount)
    return int(amount) if isinstance(amount, numbers.Integral) else float(amount)
