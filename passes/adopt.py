"""Adopt the products of masks that a model came with: `P_orig * P_mask` becomes a masked P."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.node import Node

from fxprune.program import VALUE, Program, canonical_name, is_product, parameter_read, parameters
from fxprune.rewrite import Facts, Refusal, Rewrite, Rewriter, rule

# The reads of P_orig and of P_mask, and the name P.
Pair = tuple[Node, Node, str]


@rule("mul(a, b)", name="adopt-mask")
def adopt_mask(rw: Rewriter, node: Node, a: Any, b: Any) -> Node | Refusal:
    """Take a parameter P_orig and the buffer P_mask of its module for one masked parameter P."""
    if is_product(rw.program, node):
        return Refusal("the product is adopted already", node)
    found = _pair_of(rw.program, node)
    if found is None:
        return Refusal("the factors are not P_orig and P_mask of one module", node)
    # The parameter gets another name in all graphs, or in none.
    places: list[tuple[Pair, list[Node]]] = []
    for graph in rw.program.graphs.values():
        products = _products(rw.program, graph, found)
        if isinstance(products, str):
            return Refusal(products, node)
        places += [(_pair_of(rw.program, products[0]) or found, products)] if products else []
    rw.adopt(found[2])
    made = [_join(rw, pair, products) for pair, products in places]
    return made[0]


def _products(program: Program, graph: fx.Graph, found: Pair) -> list[Node] | str:
    """Return the nodes of a graph that read P_orig, or why not each is its product with P_mask."""
    orig, mask, name = found
    reads = graph.find_nodes(op="get_attr", target=orig.target)
    products = sorted({user for read in reads for user in read.users})
    for node in products:
        pair = _pair_of(program, node)
        if pair is None or pair[2] != name:
            return f"{name}_orig is read without its mask as well"
    for read in graph.find_nodes(op="get_attr", target=mask.target):
        if any(_factor(user) not in products for user in read.users):
            return f"{name}_mask is read elsewhere as well"
    return products


def _join(rw: Rewriter, pair: Pair, products: list[Node]) -> Node:
    """Put one product in the place of several, with a read of the mask of its own."""
    orig, mask, name = pair
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


def _pair_of(program: Program, node: Node) -> Pair | None:
    if canonical_name(node.target) != "mul" or len(node.args) != 2:
        return None
    a, b = node.args
    pair = _masked_pair(program, a, b) or _masked_pair(program, b, a)
    if pair is None or VALUE not in node.meta:
        return pair
    # A mask of a wider dtype widens the product, which a masked parameter is not.
    wide = node.meta[VALUE][1] != parameters.parameter(program, f"{pair[2]}_orig").dtype
    return None if wide else pair


def _masked_pair(program: Program, orig: Any, mask: Any) -> Pair | None:
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
    parameter = parameters.parameter(program, stored)
    if buffer is None or buffer.shape != parameter.shape:
        return None
    # Without a cast, a mask of a wider dtype would widen the product.
    return (orig, mask, name) if cast or buffer.dtype == parameter.dtype else None


@dataclass(frozen=True)
class AdoptMasks(Rewrite):
    """Find products of parameters and masks that are in the graph already, and own them."""

    name: ClassVar[str] = "adopt"
    effect: ClassVar[str] = "adopts"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Adopt every such product."""
        rewriter.apply([adopt_mask])
