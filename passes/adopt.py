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
    found = _masked_pair(rw.program, a, b) or _masked_pair(rw.program, b, a)
    if found is None:
        return Refusal("the factors are not P_orig and P_mask of one module", node)
    orig, mask, name = found
    if not all(user.op == "call_function" and _is_mul(user) for user in orig.users):
        return Refusal(f"{name}_orig is read without its mask as well", node)
    rw.adopt(name)
    earlier = next((user for user in orig.users if is_product(rw.program, user)), None)
    if earlier is not None:
        rw.replace_uses(node, earlier)
        rw.erase(node)
        return earlier
    read = rw.read(str(mask.target), before=node)
    product = rw.call(torch.ops.aten.mul.Tensor, (orig, read), before=node)
    product.meta = {**node.meta, **product.meta, "fxprune.param": name}
    rw.replace_uses(node, product)
    rw.erase(node)
    return product


def _is_mul(node: Node) -> bool:
    return canonical_name(node.target) == "mul"


def _masked_pair(program: Program, orig: Any, mask: Any) -> tuple[Node, Node, str] | None:
    """Return the reads of P_orig and P_mask, and P, if these are the two factors."""
    stored = parameter_read(program, orig)
    if stored is None:
        return None
    if isinstance(mask, Node) and canonical_name(mask.target) in ("to", "_to_copy"):
        mask = mask.args[0]
    name = stored.removesuffix("_orig")
    if not isinstance(mask, Node) or mask.op != "get_attr" or str(mask.target) != f"{name}_mask":
        return None
    path, _, attribute = f"{name}_mask".rpartition(".")
    buffer = program.get_submodule(path)._buffers.get(attribute)
    parameter = tensors.parameter(program, stored)
    if (name == stored and name not in tensors.masks(program)) or buffer is None:
        return None
    return (orig, mask, name) if buffer.shape == parameter.shape else None


@dataclass(frozen=True)
class AdoptMasks(Rewrite):
    """Find products of parameters and masks that are in the graph already, and own them."""

    name: ClassVar[str] = "adopt"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Adopt every such product."""
        rewriter.apply([adopt_mask])
