"""torch.nn.utils.prune on a Program: the same names, signatures and semantics.

    import fxprune.functional as prune
    prune.l1_unstructured(program, "conv1.weight", amount=0.2)

Ported code changes the import and its (module, name) pairs: the module is the Program, and the
name is the parameter's full name. Each call builds a one-rule recipe with `ties="torch"` and runs
the same passes on the Program in place, all or nothing.

Where torch raises, these raise an FxpruneError that is of torch's kind as well: for what is no
Program a PassTypeError, for a name that it lacks a MissingParameterError, for an amount out of
range an AmountError, for a dimension that is not there a DimError, for a mask or scores of another
shape a ShapeError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fxprune.compiler import edit, is_pruned
from fxprune.errors import PassTypeError
from fxprune.functional_base import BasePruningMethod, PruningContainer, check_module
from fxprune.functional_methods import (
    CustomFromMask,
    Identity,
    L1Unstructured,
    LnStructured,
    RandomStructured,
    RandomUnstructured,
    apply_globally,
)
from fxprune.program import Program
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
    "custom_from_mask",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
]


def identity(module: Program, name: str) -> Program:
    """Mask a parameter with ones (torch.nn.utils.prune.identity).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
    """
    Identity.apply(module, name)
    return module


def random_unstructured(module: Program, name: str, amount: float | int) -> Program:
    """Prune living entries at random (torch.nn.utils.prune.random_unstructured).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
        amount: share (float) or count (int) of the living entries.
    """
    RandomUnstructured.apply(module, name, amount)
    return module


def l1_unstructured(
    module: Program,
    name: str,
    amount: float | int,
    importance_scores: torch.Tensor | None = None,
) -> Program:
    """Prune the living entries of smallest magnitude (torch.nn.utils.prune.l1_unstructured).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
        amount: share (float) or count (int) of the living entries.
        importance_scores: of the parameter's shape; ranked by magnitude in its place.

    Example:
        >>> import fxprune
        >>> program = fxprune.capture(torch.nn.Linear(4, 2), (torch.zeros(2, 4),))
        >>> int(l1_unstructured(program, "weight", amount=3).masks["weight"].sum())
        5
    """
    L1Unstructured.apply(module, name, amount, importance_scores=importance_scores)
    return module


def random_structured(module: Program, name: str, amount: float | int, dim: int) -> Program:
    """Prune living channels at random (torch.nn.utils.prune.random_structured).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
        amount: share (float) or count (int) of the living channels.
        dim: the dimension of the channels.
    """
    RandomStructured.apply(module, name, amount, dim)
    return module


def ln_structured(
    module: Program,
    name: str,
    amount: float | int,
    n: float | str,
    dim: int,
    importance_scores: torch.Tensor | None = None,
) -> Program:
    """Prune the living channels of smallest Ln norm (torch.nn.utils.prune.ln_structured).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
        amount: share (float) or count (int) of the living channels.
        n: order of the norm, as `p` of torch.norm.
        dim: the dimension of the channels.
        importance_scores: of the parameter's shape; its norms are ranked instead.
    """
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


def global_unstructured(
    parameters: Iterable[tuple[Program, str]],
    pruning_method: Any,
    importance_scores: Mapping[tuple[Program, str], torch.Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Rank entries of several parameters together (torch.nn.utils.prune.global_unstructured).

    Args:
        parameters: (Program, full name) pairs, all of one Program; a parameter counts once,
            however often it or an alias is named.
        pruning_method: a class with PRUNING_TYPE "unstructured": of this module, of
            torch.nn.utils.prune, or a user's own.
        importance_scores: by (Program, full name) pair.
        **kwargs: arguments of the class, as `amount`.

    Raises:
        PassTypeError: `parameters` is no iterable of such pairs, or the method is structured.
    """
    if not isinstance(parameters, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError("global_unstructured: parameters must be (program, name) pairs")
    if not isinstance(importance_scores, (dict, type(None))):
        raise PassTypeError("global_unstructured: importance_scores must be a dict")
    pairs = list(parameters)
    for program, _ in pairs:
        check_module(program)
    programs = {id(program): program for program, _ in pairs}
    if len(programs) != 1:
        raise PassTypeError(
            f"global_unstructured: parameters name {len(programs)} programs; name some of one"
        )
    scores = {name: tensor for (_, name), tensor in (importance_scores or {}).items()}
    names = tuple(name for _, name in pairs)
    apply_globally(pairs[0][0], names, pruning_method, scores, kwargs)


def custom_from_mask(module: Program, name: str, mask: torch.Tensor) -> Program:
    """Mask a parameter with a given mask (torch.nn.utils.prune.custom_from_mask).

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.
        mask: of the parameter's shape; joined with the mask that is there.
    """
    CustomFromMask.apply(module, name, mask)
    return module


def remove(module: Program, name: str) -> Program:
    """Fold a parameter's mask into it (torch.nn.utils.prune.remove), key order as torch's.

    Args:
        module: the Program; edited in place.
        name: the parameter's full name.

    Raises:
        NotPrunedError: the parameter has no mask.
    """
    check_module(module)
    step = create("finalize", names=(name,), source_order=False)
    return edit(module, step, inplace=True)
