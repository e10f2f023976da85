"""Dataflow with networkx: what feeds what in a Program's graph, and which nodes share memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node

from fxprune.errors import MissingParameterError, PassError
from fxprune.program import ops, parameters
from fxprune.program.program import BOTH, EVAL, TRAIN, Program, check_program, mode_of
from fxprune.program.uses import is_product, parameter_of
from fxprune.words import nearest

if TYPE_CHECKING:  # it takes a quarter of a second to import
    import networkx as nx


class Vertex(NamedTuple):
    """A place in the view.

    Args:
        kind: "node", "parameter" or "buffer".
        name: the node's name, or the full name of the tensor: of a parameter the first one.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Use:
    """One use of a value.

    Args:
        source: what is used: a parameter, masked or not, a buffer or a node.
        target: the node that uses it.
        op: the canonical name of the target's operator; "output" for what the graph returns.
        role: the argument that the source is there.
    """

    source: Vertex
    target: Vertex
    op: str
    role: str


def dataflow(program: Program, mode: str | None = None) -> nx.MultiDiGraph[Vertex]:
    """Return the graph of one mode as a frozen networkx MultiDiGraph of `Vertex`.

    Each node of the graph is a vertex, and so is each parameter and each buffer, read or not. An
    edge leads from a value to the node that takes it, under its `role` there. A node that writes
    into an argument, by its operator's schema, has edges with `write=True` back to that argument
    and to what it is a view of, so that what reads them later is reachable.

    Args:
        program: any Program.
        mode: "train", "eval" or "both"; None for the current one.

    Returns:
        The view. A vertex has `op` (canonical name; "placeholder", "get_attr" or "output" for
        what is no call; its kind for a tensor) and `of`: the parameter or buffer that a read, or a
        product with the mask, stands for, else None. A parameter has its `aliases`.

    Raises:
        PassError: the Program has no graph of that mode.

    Example:
        >>> import fxprune, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> view = dataflow(program)
        >>> list(view.successors(Vertex("node", "weight")))
        [Vertex(kind='node', name='linear')]
        >>> [role for _, _, role in view.in_edges(Vertex("node", "linear"), data="role")]
        ['input', 'weight', 'bias']
    """
    import networkx as nx

    graph = _graph_of(program, mode)
    view: Any = nx.MultiDiGraph()
    for name, aliases in parameters.aliases(program).items():
        view.add_node(Vertex("parameter", name), op="parameter", of=None, aliases=aliases)
    for name, _ in program.named_buffers(remove_duplicate=False):
        view.add_node(Vertex("buffer", name), op="buffer", of=None)
    for node in graph.nodes:
        _add(view, node, _tensor_of(program, node))
    return nx.freeze(view)


def alias_groups(program: Program) -> tuple[tuple[str, ...], ...]:
    """Return the names of each tied parameter, the first name first; untied ones are left out.

    Args:
        program: any Program.

    Example:
        >>> import fxprune, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        >>> model[1].weight = model[0].weight
        >>> alias_groups(fxprune.capture(model, (torch.zeros(4, 3),)))
        (('0.weight', '1.weight'),)
    """
    check_program(program, "dataflow")
    return tuple(names for names in parameters.aliases(program).values() if len(names) > 1)


def feeds(program: Program, name: str | Vertex, mode: str | None = None) -> tuple[Use, ...]:
    """Return the uses of a parameter, a buffer or a node; a masked parameter's are its product's.

    Args:
        program: any Program.
        name: any name of a parameter, the name of a buffer or of a node, looked up in this order,
            or a Vertex.
        mode: see `dataflow`.

    Raises:
        MissingParameterError: there is none of that name.

    Example:
        >>> import fxprune, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> [(use.op, use.role) for use in feeds(program, "weight")]
        [('linear', 'weight')]
    """
    view = dataflow(program, mode)
    start = _find(program, view, name)
    return tuple(_uses(view, start, start))


def fed_by(program: Program, name: str | Vertex, mode: str | None = None) -> tuple[Use, ...]:
    """Return what a node takes: parameters and buffers, masked or not, and other nodes.

    Args:
        program: any Program.
        name: see `feeds`.
        mode: see `dataflow`.

    Raises:
        MissingParameterError: there is none of that name.

    Example:
        >>> import fxprune, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> [use.source.name for use in fed_by(program, "linear")]
        ['input_1', 'weight', 'bias']
    """
    view = dataflow(program, mode)
    target = _find(program, view, name)
    edges = [edge for edge in view.in_edges(target, data=True) if not edge[2].get("write")]
    return tuple(
        Use(view.nodes[source]["of"] or source, target, view.nodes[target]["op"], data["role"])
        for source, _, data in edges
    )


def descendants(program: Program, name: str | Vertex, mode: str | None = None) -> frozenset[Vertex]:
    """Return all that a value flows into; see `feeds`."""
    import networkx as nx

    view = dataflow(program, mode)
    return frozenset(nx.descendants(view, _find(program, view, name)))


def ancestors(program: Program, name: str | Vertex, mode: str | None = None) -> frozenset[Vertex]:
    """Return all that flows into a value; see `feeds`."""
    import networkx as nx

    view = dataflow(program, mode)
    return frozenset(nx.ancestors(view, _find(program, view, name)))


def reachable(program: Program, a: str | Vertex, b: str | Vertex, mode: str | None = None) -> bool:
    """Tell whether the value `a` flows into `b`, by any number of steps; see `feeds`.

    Example:
        >>> import fxprune, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> reachable(program, "weight", "output"), reachable(program, "linear", "bias")
        (True, False)
    """
    import networkx as nx

    view = dataflow(program, mode)
    return bool(nx.has_path(view, _find(program, view, a), _find(program, view, b)))


def node_graph(nodes: Iterable[Node]) -> nx.DiGraph[Node]:
    """Return some nodes of a graph, with an edge from each to those that read it."""
    import networkx as nx

    within = dict.fromkeys(nodes)
    view: nx.DiGraph[Node] = nx.DiGraph()
    view.add_nodes_from(within)
    view.add_edges_from((r, node) for node in within for r in node.all_input_nodes if r in within)
    return view


def downstream(view: nx.DiGraph[Node], nodes: Iterable[Node]) -> set[Node]:
    """Return some nodes of a `node_graph` and all that they flow into."""
    import networkx as nx

    return {node for layer in nx.bfs_layers(view, nodes) for node in layer}


def upstream(view: nx.DiGraph[Node], nodes: Iterable[Node]) -> set[Node]:
    """Return some nodes of a `node_graph` and all that flows into them."""
    return downstream(view.reverse(copy=False), nodes)


def _graph_of(program: Program, mode: str | None) -> Any:
    check_program(program, "dataflow")
    graphs = program.graphs
    found = mode_of(program) if mode is None else mode
    if found in (TRAIN, EVAL) and BOTH in graphs:
        found = BOTH
    if found not in graphs:
        raise PassError(f"mode={mode!r}: the program has a graph for {' and '.join(graphs)}")
    return graphs[found]


def _find(program: Program, view: Any, name: str | Vertex) -> Vertex:
    if isinstance(name, Vertex):
        found = [name]
    else:
        first = program.captured.first.get(name, name)
        found = [Vertex("parameter", first), Vertex("buffer", name), Vertex("node", name)]
    for vertex in found:
        if vertex in view:
            return vertex
    names: list[str] = [vertex.name for vertex in view]
    near = nearest(found[-1].name, names)
    hint = f"; did you mean {near!r}?" if near else ""
    raise MissingParameterError(
        f"the graph has no parameter, buffer or node {found[-1].name!r}{hint}"
    )


def _add(view: Any, node: Node, of: Vertex | None) -> None:
    here = _vertex(node)
    of = of if of in view else None  # a read of a nested graph stands for no tensor
    view.add_node(here, op=_op(node), of=of)
    if node.op == "get_attr" and of is not None:
        view.add_edge(of, here, role="read")
    for role, source in ops.roles(node):
        view.add_edge(_vertex(source), here, role="output" if node.op == "output" else role)
    for role, changed in _writes(node):
        view.add_edge(here, _vertex(changed), role=role, write=True)


def _vertex(node: Node) -> Vertex:
    return Vertex("node", node.name)


def _op(node: Node) -> str:
    return ops.canonical_name(node.target) if node.op == "call_function" else node.op


def _tensor_of(program: Program, node: Node) -> Vertex | None:
    """Return the tensor that a node stands for: by reading it, or as its product with a mask."""
    if node.op != "get_attr" and not is_product(program, node):
        return None
    name = parameter_of(program, node)
    return Vertex("buffer", str(node.target)) if name is None else Vertex("parameter", name)


def _uses(view: Any, start: Vertex, of: Vertex) -> Iterator[Use]:
    for _, target, data in view.out_edges(start, data=True):
        if data.get("write"):
            continue
        if view.nodes[target]["of"] == of:
            yield from _uses(view, target, of)
        else:
            yield Use(of, target, view.nodes[target]["op"], data["role"])


def _writes(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield what a node writes into, and what that is a view of, with the argument's role."""
    marks = {arg.name: arg.alias_info for arg in ops.schema_arguments(node.target)}
    for role, source in ops.roles(node):
        mark = marks.get(role)
        base = source if mark is not None and mark.is_write else None
        while base is not None:
            yield role, base
            base = shared(base)


# What their schemas do not say: without training a dropout returns its input, and so on.
_MAY_RETURN = frozenset(
    [
        "dropout",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "getitem",
        "rrelu",
        "identity",
        "type_as",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
    ]
)


def written(node: Node) -> Node | None:
    """Return the node whose tensor an operator writes to; None where it writes to none."""
    if isinstance(node.target, OpOverload):
        role = _written_role(node.target)
        found = None if role is None else ops.argument(node, role)
        return found if isinstance(found, Node) else None
    name = str(getattr(node.target, "__name__", ""))
    in_place = name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "setitem")
    first = node.args[0] if node.args else None
    return first if in_place and isinstance(first, Node) else None


def detaches(node: Node) -> bool:
    """Tell whether an operator writes to no number of a tensor, though its schema says so."""
    return node.op == "call_function" and ops.canonical_name(node.target) == "detach"


@cache
def _written_role(target: OpOverload) -> str | None:
    """Return the name of the first argument that an operator writes to."""
    for argument in target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return argument.name
    return None


@cache
def _returns_view(target: OpOverload) -> bool:
    """Tell whether what an operator returns may share the memory of its first argument."""
    arguments = target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None


class Aliases:
    """Which nodes of a graph share memory.

    Attributes:
        place: of each node in the graph.
        mutated: names of stored tensors that the graph writes to.
        overwritten: nodes whose numbers it writes to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        import networkx as nx

        self.place = {node: at for at, node in enumerate(graph.nodes)}
        self.mutated: set[str] = set()
        self.overwritten: set[Node] = set()
        self._sharing: dict[Node, list[Node]] = {}  # each node's group, in the order of the graph
        view: nx.Graph[Node] = nx.Graph()
        view.add_nodes_from(graph.nodes)
        view.add_edges_from((n, base) for n in graph.nodes if (base := shared(n)) is not None)
        for group in nx.connected_components(view):
            nodes = sorted(group, key=self.place.__getitem__)
            self._sharing.update(dict.fromkeys(nodes, nodes))
            writers = [node for node in nodes if written(node) is not None]
            if writers and nodes[0].op == "get_attr":
                self.mutated.add(str(nodes[0].target))
            if not all(map(detaches, writers)):
                self.overwritten |= group

    def stale(self, node: Node) -> list[Node]:
        """Return the nodes that share what an operator writes to, where one is read afterwards.

        Reads of the operator's own result are right: they are known to see what was written.
        """
        if written(node) is None:
            return []
        here, group = self.place[node], self._sharing[node]
        before = [other for other in group if self.place[other] < here]
        later = any(self.place[user] > here for other in before for user in other.users)
        return before if later or group[0].op == "get_attr" else []


def shared(node: Node) -> Node | None:
    """Return the node whose memory a node's tensor may be: it writes there, or is a view of it."""
    into = written(node)
    if into is not None:
        return into
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    if ops.canonical_name(node.target) in _MAY_RETURN:
        return node.args[0]
    shares = isinstance(node.target, OpOverload) and _returns_view(node.target)
    return node.args[0] if shares else None
