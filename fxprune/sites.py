"""The parameters of a Program as sites: names, owners, and how the graphs use them."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx.node import Node

from fxprune import ops, tensors
from fxprune.facts import ParamSite
from fxprune.program import Program
from fxprune.reads import is_product, parameter_read
from fxprune.shell import kind_of

__all__ = ["sites_of"]


def sites_of(program: Program) -> tuple[ParamSite, ...]:
    """Return a site for each parameter, in parameter order.

    A masked parameter is used where its product with the mask is used.

    Args:
        program: any Program.
    """
    uses: dict[str, list[tuple[str, str]]] = {}
    for graph in program.graphs.values():
        for node in graph.nodes:
            name = parameter_read(program, node)
            if name is not None:
                uses.setdefault(name, []).extend(_uses(program, node))
    return tuple(
        _site(program, name, aliases, tuple(dict.fromkeys(uses.get(name, []))))
        for name, aliases in tensors.aliases(program).items()
    )


def _site(
    program: Program, name: str, aliases: tuple[str, ...], uses: tuple[tuple[str, str], ...]
) -> ParamSite:
    owners = (tensors.owner(program, alias)[0] for alias in aliases)
    kinds = (program.captured.kind if o is program else kind_of(o) for o in owners)
    modules = tuple(dict.fromkeys(kinds))
    parameter = tensors.parameter(program, name)
    return ParamSite(name, aliases, modules, uses, parameter.shape, parameter.dtype)


def _uses(program: Program, read: Node) -> Iterator[tuple[str, str]]:
    for user in read.users:
        if is_product(program, user):
            yield from _uses(program, user)
        elif user.op == "call_function":
            op = ops.canonical_name(user.target)
            yield from ((op, role) for role, node in ops.roles(user) if node is read)
