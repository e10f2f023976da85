"""For which batch sizes an exported graph is right: export follows one way through forward."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import CaptureError, FxpruneError
from fxprune.frontends.batch import Batched
from fxprune.program import Program, with_flags
from fxprune.verification import observe


def check_conditions(exported: torch.export.ExportedProgram, kind: str) -> None:
    """Refuse a graph that is right for some batch sizes only.

    Sizes of 0 and 1 are always taken apart by export, and equal sizes of several inputs are checked
    at each call.

    Args:
        exported: what torch.export gave.
        kind: the class name of the source.

    Raises:
        CaptureError: forward decided on the batch size; names the condition and `batch=`.
    """
    sizes = {str(size) for node in exported.graph.nodes for size in _input_sizes(node)}
    for symbol, allowed in exported.range_constraints.items():
        if str(symbol) not in sizes:
            continue
        lower, upper = str(allowed.lower), str(allowed.upper)
        if int(lower) > 2 or upper.isdigit():
            at_most = f" and at most {upper}" if upper.isdigit() else ""
            raise CaptureError(_message(kind, f"the batch size is at least {lower}{at_most}"))
    conditions: Any = getattr(exported, "_guards_code", None) or ()
    for condition in conditions:
        if "size()" in condition and re.search(r"[%<>!]", condition):
            raise CaptureError(_message(kind, condition))


def _input_sizes(node: Any) -> Any:
    value = node.meta.get("val") if node.op == "placeholder" else None
    return value.shape if isinstance(value, torch.Tensor) else ()


def _message(kind: str, condition: str) -> str:
    return (
        f"the graph of {kind} is right only where {condition}: forward decides on the batch size; "
        "let it compute alike for all sizes, or capture with batch=None for this size alone"
    )


aten = torch.ops.aten
_PRODUCTS = frozenset({aten.mm.default, aten.addmm.default, aten.bmm.default})
# They write to running statistics without a word in their schemas.
_NORMS = frozenset(
    {
        aten.native_batch_norm.default,
        aten.cudnn_batch_norm.default,
        aten.miopen_batch_norm.default,
    }
)


def takes_a_batch_of_one(program: Program, source: nn.Module, example: Batched) -> bool:
    """Tell whether the Program does with one row of the example what its source does.

    torch.export assumes that no size is 0 or 1 and notes no condition for it, so that a forward
    which decides on `x.shape[0] > 1` would follow the other way without a word.

    Args:
        program: as captured; it shares its tensors with the source.
        source: the private copy that it was captured from.
        example: the inputs of the capture.
    """
    leaves, tree = pytree.tree_flatten((example.args, example.kwargs))
    dims = example.dims
    if all(dim is None for dim in dims) or any(p.is_meta for p in source.parameters()):
        return True
    rows = [x if d is None else x.narrow(d, 0, 1) for x, d in zip(leaves, dims, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _call_alike(program, source, rows, tree) or _compute_alike(
            program, source, rows, tree
        )


def _call_alike(
    program: Program, source: nn.Module, rows: list[Any], tree: pytree.TreeSpec
) -> bool:
    """Tell whether both call the same operators on the same tensors; little is computed."""
    given = [*rows, *source.parameters(), *source.buffers()]
    args, kwargs = pytree.tree_unflatten(rows, tree)
    wanted = _Calls(given)
    try:
        returned = wanted.named(wanted.run(source, args, kwargs))
        found = _Calls(given, wanted.made)
        alike = found.named(found.run(program, args, kwargs)) == returned
    except Exception:  # noqa: BLE001 - another call, or one that needs the values: these will tell
        return False
    return alike and len(found.made) == len(wanted.made)


class _Calls(TorchDispatchMode):
    """The operators that a run calls, on tensors named alike in every run.

    Args:
        given: the tensors that are there before the run, which may not write to them.
        held_to: the calls of an earlier run, whose results this run gets while it calls the same.
    """

    def __init__(self, given: list[Any], held_to: list[tuple[Any, Any]] | None = None) -> None:
        super().__init__()
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        self.made: list[tuple[Any, Any]] = []
        self._held_to = held_to
        self._storages = {x.untyped_storage()._cdata for x in tensors}
        self._names: dict[int, Any] = {id(x): at for at, x in enumerate(tensors)}
        self._alive: list[Any] = []  # every result, so that no id is used again

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return what a module in eval mode returns."""
        with with_flags(module, value=False), torch.enable_grad(), self:
            return module(*args, **kwargs)

    def named(self, value: Any) -> Any:
        """Return what is equal for equal values; a tensor that came from nowhere equals none."""
        if isinstance(value, torch.Tensor):
            return self._names.get(id(value), object())
        if isinstance(value, dict):
            return {key: self.named(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.named(part) for part in value]
        return type(value), value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        at, call = len(self.made), (func, self.named(args), self.named(kwargs))
        if self._held_to is not None and self._held_to[at][0] != call:
            raise CaptureError("another call")
        if self._held_to is None or func._schema.is_mutable:
            self._check_writes(func, args)
            found = _result(func, args, kwargs)
        else:
            found = self._held_to[at][1]
        # Autograd marks the tensor that is returned, which is why a later run gets another.
        self.made.append((call, pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, found)))
        for place, leaf in enumerate(pytree.tree_leaves(found)):
            self._names[id(leaf)] = at, place
            self._alive.append(leaf)
        return found

    def _check_writes(self, func: Any, args: Any) -> None:
        trains = func in _NORMS and args[5]
        tensors = (x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor))
        if (trains or func._schema.is_mutable) and any(
            x.untyped_storage()._cdata in self._storages for x in tensors
        ):
            raise CaptureError("a write to what others hold")


def _result(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an operator; of those that cost the most, only the result's shape is right."""
    if func in _PRODUCTS:
        a, b = args[-2:]
        return a.new_zeros(*a.shape[:-1], b.shape[-1])
    if func is aten.convolution.default:
        shape = func(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in args))
        return torch.zeros_like(shape, device=args[0].device)
    return func(*args, **kwargs)


def _compute_alike(
    program: Program, source: nn.Module, rows: list[Any], tree: pytree.TreeSpec
) -> bool:
    """Tell whether both return close values."""
    try:
        wanted, found = (_observed(module, rows, tree) for module in (source, program))
    except FxpruneError:
        return True  # dimensions that are not the batch after all: the input check says so
    except Exception:  # noqa: BLE001 - forward itself may refuse a batch of one, in any way
        return False
    return len(wanted) == len(found) and all(map(_close, wanted, found))


def _observed(module: nn.Module, rows: list[Any], tree: pytree.TreeSpec) -> list[Any]:
    """Run a copy on copies: forward may write to its inputs, and to buffers that are shared."""
    own = [row.detach().clone() if isinstance(row, torch.Tensor) else row for row in rows]
    args, kwargs = pytree.tree_unflatten(own, tree)
    return observe(copy.deepcopy(module), args, kwargs)


def _close(a: Any, b: Any) -> bool:
    """Tell whether two outputs are alike; kernels chosen by size or gradient round differently."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    bound = a.abs().nan_to_num(0, 0).amax() if a.numel() else 0
    atol = float(bound) * torch.finfo(a.dtype).eps ** 0.5  # half of the digits
    return torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True)
