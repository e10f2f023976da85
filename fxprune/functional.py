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

The method classes derive from torch's BasePruningMethod, so that code which checks for it goes on
working, but `apply` masks a Program, and no mask is made by torch's code.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune
from torch import fx, nn

from fxprune.compiler import edit, is_pruned, run_stages, stage_of
from fxprune.errors import PassError, PassTypeError, ShapeError
from fxprune.program import BOTH, Captured, InputSpec, Nesting, Program, parameters
from fxprune.ranking import check_amount, combined_mask
from fxprune.recipe import Rule
from fxprune.rewrite import GivenMasks, Importance, Methods, create

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
        _check_module(program)
    programs = {id(program): program for program, _ in pairs}
    if len(programs) != 1:
        raise PassTypeError(
            f"global_unstructured: parameters name {len(programs)} programs; name some of one"
        )
    method: Any = (_OF_TORCH.get(pruning_method) or pruning_method)(**kwargs)
    if not isinstance(method, torch_prune.BasePruningMethod):
        raise PassTypeError(f"{pruning_method!r} is no subclass of BasePruningMethod")
    kind = getattr(method, "PRUNING_TYPE", None)
    if kind != "unstructured":
        raise PassTypeError(
            f"global pruning takes methods of PRUNING_TYPE 'unstructured'; "
            f"{type(method).__name__} is {kind!r}"
        )
    scores = {name: tensor for (_, name), tensor in (importance_scores or {}).items()}
    _mask_parameters(pairs[0][0], tuple(name for _, name in pairs), method, scores, "global")


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
    _check_module(module)
    step = create("finalize", names=(name,), source_order=False)
    return edit(module, step, inplace=True)


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
        _mask_parameters(module, (name,), method, scores, "local")
        return method

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule that stands for this method."""
        return _imported_rule(self)

    def apply_mask(self, module: Program) -> torch.Tensor:
        """Return the masked parameter, with its gradient."""
        return parameters.masks(module)[self._tensor_name] * parameters.parameter(
            module, self._tensor_name
        )

    def remove(self, module: Program) -> None:
        """Fold the mask into the parameter."""
        remove(module, self._tensor_name)


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
        """Add a method for the same parameter."""
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


def _mask_parameters(
    program: Any,
    names: tuple[str, ...],
    method: Any,
    scores: Mapping[str, torch.Tensor],
    scope: str,
) -> None:
    """Mask parameters of a Program in place by one method, as a one-rule recipe.

    Names are full and in the order in which they are ranked, importance scores are by name.
    """
    _check_module(program)
    keys = method.rule() if isinstance(method, BasePruningMethod) else _imported_rule(method)
    if keys["method"] != "identity":
        keys["scope"] = scope
    rule = Rule(name="functional", select="*", ties="torch", **keys)
    given: list[Any] = [Importance(scores), Methods({"functional": method})]
    if keys["method"] == "custom_from_mask":
        given.append(GivenMasks({names[0]: vars(method)["mask"]}))
    stage = stage_of((rule,), names=names, rejoin=scope == "global")
    run_stages(program, [stage], given, inplace=True)


def _check_module(module: Any) -> None:
    """Raise PassTypeError where a function of torch.nn.utils.prune's name was handed no Program."""
    if not isinstance(module, Program):
        raise PassTypeError(
            f"expected a Program, got a {type(module).__name__}; capture the model first: "
            "program = fxprune.capture(model, args), and name parameters as 'conv1.weight'"
        )


def _imported_rule(method: Any) -> dict[str, Any]:
    """Return the rule's keys for a class that the recipe knows by its module and name only."""
    kind = type(method)
    return {"method": f"{kind.__module__}:{kind.__name__}"}


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
        """Return `default_mask` with zeros where the method prunes `t`, both of one shape."""
        program = _program_around(t)
        _mask_parameters(program, ("t",), self, {}, "local")
        pruned = parameters.masks(program)["t"].to(default_mask.dtype) == 0
        return default_mask.clone(memory_format=torch.contiguous_format).masked_fill_(pruned, 0)


class Identity(_BuiltIn):
    """Prune nothing; the mask is made of ones."""

    method = "identity"


class _Unstructured(_BuiltIn):
    def __init__(self, amount: float | int) -> None:
        self.amount = _amount(amount)


class RandomUnstructured(_Unstructured):
    """Prune entries at random.

    Args:
        amount: share (float) or count (int) of the living entries.
    """

    method = "random_unstructured"


class L1Unstructured(_Unstructured):
    """Prune the entries of smallest magnitude.

    Args:
        amount: share (float) or count (int) of the living entries.
    """

    method = "l1_unstructured"


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
        """Return the product of the two masks."""
        if self.mask.shape != default_mask.shape:
            raise ShapeError(
                f"the masks differ in shape: {tuple(self.mask.shape)} and "
                f"{tuple(default_mask.shape)}"
            )
        return default_mask * self.mask.to(default_mask.dtype)

    def rule(self) -> dict[str, Any]:
        """Return the keys of the recipe's rule."""
        own = type(self).compute_mask is CustomFromMask.compute_mask
        return {"method": self.method} if own else _imported_rule(self)


# torch's own classes stand for fxprune's; a user's subclass of one is the user's own method.
_OF_TORCH: dict[type[Any], type[_BuiltIn]] = {
    torch_prune.Identity: Identity,
    torch_prune.RandomUnstructured: RandomUnstructured,
    torch_prune.L1Unstructured: L1Unstructured,
    torch_prune.RandomStructured: RandomStructured,
    torch_prune.LnStructured: LnStructured,
    torch_prune.CustomFromMask: CustomFromMask,
}


def _dim(dim: Any) -> int:
    if not isinstance(dim, int):
        raise PassTypeError(f"dim={dim!r} must be an int: the dimension of the channels")
    return dim


def _amount(amount: Any) -> float | int:
    check_amount(amount)
    return int(amount) if isinstance(amount, numbers.Integral) else float(amount)


def _program_around(t: torch.Tensor) -> Program:
    """Return a Program that holds one parameter `t` and computes nothing."""
    tree = nn.Module()
    tree.register_parameter("t", nn.Parameter(t.detach(), requires_grad=False))
    graph = fx.Graph()
    graph.output(())
    captured = Captured(
        inputs=InputSpec((), Nesting(((), {})), (), ()),
        outputs={BOTH: Nesting(())},
        first={"t": "t"},
        kind="Tensor",
        frozen={True: {}, False: {}},
    )
    return Program.assemble(tree, {BOTH: graph}, captured)
