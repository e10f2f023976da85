"""Insert masks: each masked parameter is read through one product, just before its first user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx.node import Node

from fxprune.errors import InvariantError
from fxprune.program import is_product, parameter_of, parameters
from fxprune.rewrite import Facts, NewMasks, Refusal, Rewrite, Rewriter, rule


@rule("W", name="insert-mask")
def insert_mask(rw: Rewriter, node: Node, W: Node) -> Node | Refusal:  # noqa: N803
    """Read W as W_orig * W_mask where the tree has a mask for it."""
    name = parameter_of(rw.program, W)
    if name is None or name not in parameters.masks(rw.program):
        return Refusal("the parameter has no mask", node)
    if W.op != "get_attr" or any(is_product(rw.program, user) for user in W.users):
        return Refusal("the parameter is read through its mask already", node)
    if not W.users:
        return Refusal("nothing reads the parameter", node)
    first = _place_before(W)
    rw.retarget(W, f"{name}_orig")
    mask = rw.read(f"{name}_mask", before=first)
    product = rw.call(torch.ops.aten.mul.Tensor, (W, mask), before=first)
    product.meta = {**W.meta, **product.meta, "fxprune.param": name}
    rw.replace_uses(W, product)
    return product


def _place_before(read: Node) -> Node:
    """Return the first user of a parameter, or where the no_grad region that it is in began.

    Inside of such a region the product would have no gradient for the users outside of it.
    """
    if not read.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
        return min(read.users)
    began: Node | None = None
    for node in read.graph.nodes:
        if node in read.users:
            return node if began is None else began
        if node.target is torch._C._set_grad_enabled:
            opens = not isinstance(node.args[0], Node)
            began = (began or node.prev) if opens else None
    raise InvariantError(f"node {read.name} has users that are not in its graph")


@dataclass(frozen=True)
class InsertMasks(Rewrite):
    """Give the parameters their new masks.

    With `rejoin`, a new mask is multiplied with the one that is there, though it holds it already,
    as torch.nn.utils.prune.global_unstructured does; only masks with other values than 0 and 1 show
    it.
    """

    name: ClassVar[str] = "mask"
    effect: ClassVar[str] = "masks"
    needs: ClassVar = (NewMasks,)

    rejoin: bool = False

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Add each mask to the tree, then the products to the graphs."""
        masks = parameters.masks(rewriter.program)
        for name, mask in facts[NewMasks].make():
            joined = masks[name] * mask if self.rejoin and name in masks else mask
            rewriter.add_mask(name, joined)
        rewriter.apply([insert_mask])
