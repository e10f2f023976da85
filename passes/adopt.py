"""Adopt the products of masks that a model came with: `P_orig * P_mask` becomes a masked P."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx.node import Node

from fxprune import tensors
from fxprune.ops import canonical_name
from fxprune.pattern import Refusal
from fxprune.pipeline import Facts, Rewrite
from fxprune.program import Program
from fxprune.reads import is_product, parameter_read
from fxprune.rewriter import Rewriter
from fxprune.rule import rule

__all__ = ["AdoptMasks", "adopt_mask"]


@rule("mul(a, b)", name="adopt-mask")
def adopt_mask(rw: Rewriter, node: Node, a: Any, b: Any) -> Node | Refusal:
    """Take a parameter P_orig and the buffer P_mask beside it for one masked parameter P."""
    if is_product(rw.program, node):
        return Refusal("the product is adopted already", node)
    found = _pair_of(rw.program, node)
    if found is None:
        return Refusal("the factors are not P_orig and P_mask of one module", node)
    orig, mask, name = found
    products = [n for n in node.graph.nodes if n in orig.users]
    if any(_pair_of(rw.program, user) != (orig, mask, name) for user in products):
        return Refusal(f"{name}_orig is read without its mask as well", node)
    if any(_factor(user) not in products for user in mask.users):
        return Refusal(f"{name}_mask is read elsewhere as well", node)
    rw.adopt(name)
    read = rw.read(str(mask.target), before=products[0])
    product = rw.call(torch.ops.aten.mul.Tensor, (orig, read), before=products[0])
    product.meta = {**products[0].meta, **product.meta, "fxprune.param": name}
    for old in products:
        rw.replace_uses(old, product)
        rw.erase(old)
    for old in [*mask.users, mask]:
        rw.erase(old)
    return product


def _factor(node: Node) -> Node:
    """Return the product that a cast of a mask goes into, or the node itself."""
    return next(iter(node.users)) if _is_cast(node) and len(node.users) == 1 else node


def _is_cast(node: Any) -> bool:
    return isinstance(node, Node) and canonical_name(node.target) in ("to", "_to_copy")


def _pair_of(program: Program, node: Node) -> tuple[Node, Node, str] | None:
    if canonical_name(node.target) != "mul" or len(node.args) != 2:
        return None
    a, b = node.args
    return _masked_pair(program, a, b) or _masked_pair(program, b, a)


def _masked_pair(program: Program, orig: Any, mask: Any) -> tuple[Node, Node, str] | None:
    """Return the reads of P_orig and P_mask, and P, if these are the two factors."""
    stored = parameter_read(program, orig)
    if stored is None:
        return None
    cast = _is_cast(mask)
    mask = mask.args[0] if cast else mask
    name = stored.removesuffix("_orig")
    if name == stored or name in program.captured.first:
        return None
    if not isinstance(mask, Node) or mask.op != "get_attr" or str(mask.target) != f"{name}_mask":
        return None
    path, _, attribute = f"{name}_mask".rpartition(".")
    buffer = program.get_submodule(path)._buffers.get(attribute)
    parameter = tensors.parameter(program, stored)
    if buffer is None or buffer.shape != parameter.shape:
        return None
    # Without a cast, a mask of a wider dtype would widen the product.
    return (orig, mask, name) if cast or buffer.dtype == parameter.dtype else None


@dataclass(frozen=True)
class AdoptMasks(Rewrite):
    """Find products of parameters and masks that are in the graph already, and own them."""

    name: ClassVar[str] = "adopt"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Adopt every such product."""
        rewriter.apply([adopt_mask])
