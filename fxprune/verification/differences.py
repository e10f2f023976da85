"""How values of two models differ, from which node on, and on how small an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxprune.program import (
    PATH,
    InputSpec,
    Program,
    is_product,
    mask_read_of,
    masks,
    mode_of,
    parameter_of,
)
from fxprune.support import same_bits
from fxprune.verification.snapshot import snapshot
from fxprune.verification.trials import Trial
from fxprune.words import dtype_name


@dataclass(frozen=True)
class Difference:
    """How one value differs from another; `text` is empty where it does not.

    `where` is as "output['logits']"; `size` the largest absolute difference, infinite where the
    values cannot be subtracted.
    """

    where: str
    size: float
    text: str = ""


@dataclass(frozen=True)
class Holder:
    """Compares values bit for bit, or within a bound.

    A bound is the largest difference allowed, times the largest number compared where that is above
    1.
    """

    bound: float | None

    def nests(self, name: str, after: Any, before: Any) -> list[Difference]:
        """Return a Difference for each leaf of two pytrees, whether it differs or not."""
        first, tree = pytree.tree_flatten_with_path(after)
        second, other = pytree.tree_flatten(before)
        if tree != other:
            text = f"is nested otherwise: {_shape_of(after)} after, {_shape_of(before)} before"
            return [Difference(name, math.inf, text)]
        pairs = zip(first, second, strict=True)
        return [self.leaves(f"{name}{pytree.keystr(path)}", a, b) for (path, a), b in pairs]

    def leaves(self, where: str, after: Any, before: Any) -> Difference:
        """Return how two values differ that are no containers."""
        if not (isinstance(after, torch.Tensor) and isinstance(before, torch.Tensor)):
            text = "" if _equal(after, before) else f"is {after!r} after and {before!r} before"
            return Difference(where, math.inf if text else 0.0, text)
        if after.shape != before.shape or (self.bound is None and after.dtype != before.dtype):
            text = f"is {_kind(after)} after and {_kind(before)} before"
            return Difference(where, math.inf, text)
        gap = largest_gap(after, before)
        kept = same_bits(after, before) if self.bound is None else gap <= self._bound_for(before)
        if kept:
            return Difference(where, gap)
        if gap == 0:
            return Difference(where, gap, "differs in the bits of zeros or NaN only")
        return Difference(where, gap, f"differs by up to {gap:.3g}")

    def _bound_for(self, before: torch.Tensor) -> float:
        values = _wide(before).abs()
        values = values[values.isfinite()]
        return (self.bound or 0.0) * max(1.0, float(values.max()) if values.numel() else 0.0)


def largest_gap(after: torch.Tensor, before: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN equals NaN, and infinity infinity."""
    a, b = _wide(after), _wide(before)
    equal = (a == b) | (a.isnan() & b.isnan())
    gaps = (a - b).abs().masked_fill(equal, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(gaps.max()) if gaps.numel() else 0.0


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _equal(after: Any, before: Any) -> bool:
    if type(after) is not type(before):
        return False
    try:
        return after is before or bool(after == before)
    except (RuntimeError, TypeError, ValueError):  # a class whose == gives no single answer
        return False


def _kind(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"


def _shape_of(value: Any) -> str:
    return str(pytree.tree_map(lambda _: "*", value)).replace("'*'", "*")


_RUNS = 80  # how many smaller inputs are tried at most
_SHOWN = 8  # how many entries are written out


def minimise(trial: Trial, differs: Callable[[Trial], bool], spec: InputSpec | None) -> str:
    """Return, as text, a small input on which two models differ, made smaller from `trial`.

    `spec` says which dimensions are the batch's; None leaves shapes as they are.
    """
    left = [_RUNS]

    def holds(leaves: list[Any]) -> bool:
        left[0] -= 1
        return left[0] >= 0 and differs(_with(trial, leaves))

    leaves = pytree.tree_leaves((trial.args, trial.kwargs))
    leaves = _fewer_rows(leaves, spec, holds)
    leaves = _zero_entries(leaves, holds)
    return ", ".join(_describe_inputs(leaves, spec)) or "any input, as there is none"


def _with(trial: Trial, leaves: list[Any]) -> Trial:
    tree = pytree.tree_structure((trial.args, trial.kwargs))
    args, kwargs = pytree.tree_unflatten(leaves, tree)
    return replace(trial, args=args, kwargs=kwargs)


def _fewer_rows(
    leaves: list[Any], spec: InputSpec | None, holds: Callable[[list[Any]], bool]
) -> list[Any]:
    """Leave out rows of the batch: all but one where that will do, else half after half."""
    if spec is None or len(spec.inputs) != len(leaves):
        return leaves
    for symbol in spec.symbols:
        size = _size(leaves, spec, symbol)
        spans = [(i, i + 1) for i in range(min(size, 4) if size > 1 else 0)]
        spans += [(0, math.ceil(size / 2**k)) for k in range(1, (size - 1).bit_length())]
        for start, stop in spans:
            pairs = zip(leaves, spec.inputs, strict=True)
            fewer = [_slice(leaf, at.shape, symbol, start, stop) for leaf, at in pairs]
            if holds(fewer):
                leaves = fewer
                break
    return leaves


def _size(leaves: list[Any], spec: InputSpec, symbol: str) -> int:
    for leaf, at in zip(leaves, spec.inputs, strict=True):
        if isinstance(leaf, torch.Tensor) and symbol in at.shape:
            return leaf.shape[at.shape.index(symbol)]
    return 0


def _slice(leaf: Any, shape: tuple[Any, ...], symbol: str, start: int, stop: int) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    for dim, of in enumerate(shape):
        if not isinstance(of, str) or of.rpartition("*")[2] != symbol:
            continue
        factor = int(of.rpartition("*")[0] or 1)
        leaf = leaf.narrow(dim, start * factor, (stop - start) * factor)
    return leaf


def _zero_entries(leaves: list[Any], holds: Callable[[list[Any]], bool]) -> list[Any]:
    """Set entries to zero, in ever smaller runs, while the difference stays."""
    for at, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor) or leaf.numel() == 0:
            continue
        size = leaf.numel()
        while size >= 1:
            for start in range(0, leaf.numel(), size):
                current = leaves[at]
                flat = current.reshape(-1).clone()
                if not bool(flat[start : start + size].any()):
                    continue
                flat[start : start + size] = 0
                tried = [*leaves[:at], flat.view(current.shape), *leaves[at + 1 :]]
                if holds(tried):
                    leaves = tried
            size //= 2
            if leaf.numel() // max(size, 1) > _RUNS:
                break
    return leaves


def _describe_inputs(leaves: list[Any], spec: InputSpec | None) -> Iterator[str]:
    named = spec is not None and len(spec.inputs) == len(leaves)
    for i, leaf in enumerate(leaves):
        name = spec.inputs[i].name if named and spec is not None else f"input {i}"
        if isinstance(leaf, torch.Tensor):
            yield f"{name}: {_kind(leaf)} {_entries(leaf)}"


def _entries(leaf: torch.Tensor) -> str:
    """Return the entries of a tensor that are not zero, by their index."""
    at = leaf.nonzero()
    if len(at) == 0:
        return "of zeros"
    if len(at) > _SHOWN:
        return f"with {len(at):,} entries other than zero"
    values = (f"{list(map(int, i))}: {leaf[tuple(i)].item():.9g}" for i in at)
    return f"of zeros but {', '.join(values)}"


Steps = dict[str, tuple[Node, list[torch.Tensor]]]
"""The tensors that each node gave, keyed by what the node stands for, in the order run."""


def record_values(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
    """Run the graph of a private copy in its mode and keep a copy of what every node gives.

    A parameter stands under its own name, whether it is read as it is or times its mask; the
    factors are left out. What else a node gives stands under the node's name.
    """
    leaves = program.captured.inputs.flatten(args, kwargs)
    recorder = _Recorder(program, graph=program.graphs[mode_of(program)])
    # A graph may switch grad mode in a region; an error inside must not leave it switched.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        recorder.run(*leaves, enable_io_processing=False)
    return recorder.steps


def first_difference(after: Steps, before: Steps, holder: Holder) -> Node | None:
    """Return the first node, as `after` ran, whose value differs from its namesake's."""
    for key, (node, values) in after.items():
        if key in before and _differ(values, before[key][1], holder):
            return node
    return None


def first_change(after: Program, before: Program, mode: str) -> Node | None:
    """Return the first node of a graph that the other has not, or with other arguments."""
    if mode not in before.graphs:
        return None
    views = (snapshot(program).views[mode] for program in (after, before))
    lines, others = ({line.name: repr(line) for line in view.lines} for view in views)
    changed = next((name for name, line in lines.items() if others.get(name) != line), None)
    nodes = {node.name: node for node in after.graphs[mode].nodes}
    return None if changed is None else nodes[changed]


def describe(program: Program, node: Node) -> str:
    """Say what a node is: the parameter it stands for, or its operator and module."""
    name = parameter_of(program, node)
    if name is not None:
        return f"{node.name}, the parameter {name!r}"
    place = f" in {node.meta[PATH]!r}" if node.meta.get(PATH) else ""
    return f"{node.name} ({node.target}{place})"


def _differ(after: list[torch.Tensor], before: list[torch.Tensor], holder: Holder) -> bool:
    if len(after) != len(before):
        return True
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a.shape == b.shape]
    # A pass that cuts channels changes shapes on purpose; what comes out of them must agree.
    if len(pairs) < len(after) and holder.bound is not None:
        return False
    return len(pairs) < len(after) or any(holder.leaves("", a, b).text for a, b in pairs)


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, graph: fx.Graph) -> None:
        super().__init__(program, graph=graph)
        self.program = program
        self.steps: Steps = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        key = self._key(n)
        if key is not None:
            leaves = [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]
            # Copies, since a later node may write into them.
            self.steps[key] = (n, [leaf.detach().clone().cpu() for leaf in leaves])
        return value

    def _key(self, node: Node) -> str | None:
        # A mask that differs where the parameter is zero changes nothing; the product tells.
        if node.op == "output" or mask_read_of(self.program, node) is not None:
            return None
        name = parameter_of(self.program, node)
        if name is None:
            return f"node {node.name}"
        masked = name in masks(self.program)
        return None if masked and not is_product(self.program, node) else f"parameter {name}"
