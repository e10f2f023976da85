"""The cut itself: tensors lose channels, and operators whose arguments count them are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Axis, Factor, Ids, Value
from fxprune.flow import Flow
from fxprune.importing import VALUE
from fxprune.removal import Removal
from fxprune.rewriter import Rewriter
from fxprune.sinks import Sink

__all__ = ["Surgery"]


class Surgery:
    """Cuts channels out of one Program.

    Args:
        rewriter: makes all edits.
        removal: which atoms go.
    """

    def __init__(self, rewriter: Rewriter, removal: Removal) -> None:
        self.rewriter, self.removal = rewriter, removal
        self._absorbed: set[str] = set()

    def run(self, stored: dict[str, Value], flows: Iterable[Flow]) -> None:
        """Change the graphs' arguments, then the tensors that they read."""
        for flow in flows:
            for edit in flow.edits:
                edit(self)
            for node, value in flow.values.items():
                if isinstance(value, Value):
                    self._note_shape(node, value)
        for name, value in stored.items():
            self._cut_tensor(name, value)

    # Sizes

    def size(self, axis: Axis) -> int:
        """Return an axis's size after the cut."""
        product = 1
        for factor in axis:
            product *= self._count(factor)
        return product

    def _count(self, factor: Factor) -> int:
        return factor.size if factor.atoms is None else int(self.removal.kept(factor.atoms).sum())

    def is_cut(self, axis: Axis) -> bool:
        """Tell whether an axis loses channels."""
        return any(self.removal.touches(factor.atoms) for factor in axis)

    def index(self, axis: Axis) -> torch.Tensor:
        """Return the indices of an axis that stay."""
        sizes = [factor.size for factor in axis]
        kept = np.ones(sizes, dtype=np.bool_)
        for at, factor in enumerate(axis):
            if factor.atoms is not None:
                shape = [1] * len(sizes)
                shape[at] = -1
                kept &= self.removal.kept(factor.atoms).reshape(shape)
        return torch.from_numpy(np.flatnonzero(kept.reshape(-1)))

    def _cut_tensor(self, name: str, value: Value) -> None:
        dims = [dim for dim, axis in enumerate(value.axes) if self.is_cut(axis)]
        if not dims:
            return
        tensor = self.rewriter.stored(name).detach()
        for dim in dims:
            tensor = tensor.index_select(dim, self.index(value.axes[dim]).to(tensor.device))
        self.rewriter.resize(name, tensor)

    def _note_shape(self, node: Node, value: Value) -> None:
        noted = node.meta.get(VALUE)
        if noted is None or len(noted[0]) != len(value.axes):
            return
        sizes = list(noted[0])
        for at, axis in enumerate(value.axes):
            if self.is_cut(axis):
                sizes[at] = self._noted(sizes[at], axis)
        if sizes != list(noted[0]):
            self.rewriter.note(node, VALUE, (tuple(sizes), noted[1]))

    def _noted(self, size: int | str, axis: Axis) -> int | str:
        """Return the noted size of an axis after the cut; symbols stay symbols."""
        if isinstance(size, int):
            return self.size(axis)
        symbols = [part for part in size.split("*") if not part.strip("() ").isdigit()]
        count = 1
        for factor in axis:
            if factor.atoms is not None:
                count *= self._count(factor)
        return "*".join([*symbols, str(count)])

    # What transfer rules ask for

    def set_role(self, node: Node, role: str, value: Any) -> None:
        """Change an argument, by its role."""
        names = [arg.name for arg in ops.schema_arguments(node.target)]
        at = names.index(role)
        if at < len(node.args):
            self.rewriter.set_argument(node, at, value)
        else:
            self.rewriter.set_keyword(node, role, value)

    def set_groups(self, node: Node, atoms: Ids) -> None:
        """Give a depthwise operator as many groups as it has channels left."""
        if self.removal.touches(atoms):
            self.set_role(node, "groups", int(self.removal.kept(atoms).sum()))

    def set_count(self, node: Node, role: str, atoms: Ids) -> None:
        """Give an operator the number of atoms that are left."""
        if self.removal.touches(atoms):
            self.set_role(node, role, int(self.removal.kept(atoms).sum()))

    def set_sizes(self, node: Node, before: Value, after: Value) -> None:
        """Change the sizes that a view or an expansion names."""
        role = next(role for role in ("size", "shape", "sizes") if ops.has_role(node, role))
        given = list(ops.argument(node, role))
        axes = after.axes
        if role == "sizes":  # unflatten names only the axes that one becomes
            dim = int(ops.argument(node, "dim")) % len(before.axes)
            axes = after.axes[dim : dim + len(given)]
        changed = list(given)
        for at, axis in enumerate(axes):
            if not self.is_cut(axis) or (isinstance(given[at], int) and given[at] < 0):
                continue
            changed[at] = self.size(axis) if isinstance(given[at], int) else -1
        if changed != given:
            self.set_role(node, role, changed)

    def set_parts(self, node: Node, dim: int, runs: list[Ids | None]) -> None:
        """Split by sizes where parts lose channels."""
        if not any(self.removal.touches(run) for run in runs):
            return
        sizes = [0 if run is None else int(self.removal.kept(run).sum()) for run in runs]
        target = torch.ops.aten.split_with_sizes.default
        made = self.rewriter.call(target, (node.args[0], sizes, dim), before=node)
        self.rewriter.note_all(made, node)
        self.rewriter.replace_uses(node, made)
        self.rewriter.erase(node)

    def set_slice(self, node: Node, dim: int, whole: Ids | None, index: slice) -> None:
        """Move the bounds of a slice."""
        del dim
        if whole is None or not self.removal.touches(whole):
            return
        places = np.arange(len(whole))[index]
        kept = self.removal.kept(whole)
        new = (np.cumsum(kept) - 1)[places[kept[places]]]
        step = index.step or 1
        if len(new) and step == 1:
            self.set_role(node, "start", int(new[0]))
            self.set_role(node, "end", int(new[-1]) + 1)
            return
        self._select(node, new)

    def set_index(self, node: Node, whole: Ids, at: int) -> None:
        """Move the one index that is selected."""
        if self.removal.touches(whole):
            kept = self.removal.kept(whole)
            self.set_role(node, "index", int(kept[: at % len(whole)].sum()))

    def set_indices(self, node: Node, read: Node, whole: Ids, places: Any) -> None:
        """Write a constant vector of indices anew."""
        if not self.removal.touches(whole):
            return
        kept = self.removal.kept(whole)
        places = places % len(whole)
        new = (np.cumsum(kept) - 1)[places[kept[places]]]
        name = self.rewriter.add_constant(f"{node.name}_channels", torch.from_numpy(new))
        fresh = self.rewriter.read(name, before=node)
        self.rewriter.replace_argument(node, read, fresh)

    def _select(self, node: Node, places: Any) -> None:
        """Read channels by their places, where a slice takes steps."""
        dim = int(ops.argument(node, "dim"))
        name = self.rewriter.add_constant(f"{node.name}_channels", torch.from_numpy(places))
        fresh = self.rewriter.read(name, before=node)
        target = torch.ops.aten.index_select.default
        made = self.rewriter.call(target, (node.args[0], dim, fresh), before=node)
        self.rewriter.note_all(made, node)
        self.rewriter.replace_uses(node, made)
        self.rewriter.erase(node)

    def absorb(self, sink: Sink) -> None:
        """Add to a bias what constant channels gave before they went."""
        kept = self.removal.kept(sink.atoms)
        given = np.where(kept | np.isnan(sink.const), 0.0, sink.const)
        there = np.flatnonzero(given)
        if not len(there):
            return
        weights = sink.weights[:, torch.from_numpy(there)].detach().to("cpu", torch.float64)
        sums = weights.reshape(weights.shape[0], len(there), -1).sum(-1)
        delta = sums @ torch.from_numpy(given[there])
        bias = ops.argument(sink.node, "bias")
        key = sink.node.name if bias is None else str(bias)
        if key in self._absorbed:  # in the graph of the other mode
            delta = delta * 0
        self._absorbed.add(key)
        if bias is None:
            self.rewriter.add_bias(sink.node, delta[self.index(sink.rows)])
        elif bool(delta.any()):
            self.rewriter.add_to_bias(sink.node, delta)
