"""A picture of channel groups: which parameters make channels, which others they run through."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.channels import Coupling
from fxprune.errors import FormatError
from fxprune.program import Program, sites_of
from fxprune.support import write_text

if TYPE_CHECKING:  # it takes a quarter of a second to import
    import networkx as nx

_MISSING = (
    "drawing an .svg needs matplotlib; install fxprune[pictures], or write a .dot file, which "
    "needs nothing"
)


def channel_graph(program: Program, coupling: Coupling) -> nx.DiGraph[str]:
    """Return layers of coupled channels and parameters as a graph.

    Nodes have `kind`, "layer" or "parameter", and `text`. An edge leads from a parameter to the
    layer whose channels it makes, and from a layer to each parameter that its channels run through,
    `text` being the dimension. What no layer holds is there with the reason.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxprune.compiler import capture, find_coupling
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> program = capture(model, (torch.zeros(2, 3),))
        >>> graph = channel_graph(program, find_coupling(program))
        >>> sorted(graph.edges)
        [('0.weight', 'layer 0.weight'), ('layer 0.weight', '0.bias'), \
('layer 0.weight', '2.weight')]
    """
    import networkx as nx

    graph: Any = nx.DiGraph()
    for layer in coupling.layers:
        text = f"{layer.units} channels"
        graph.add_node(f"layer {layer.name}", kind="layer", text=text)
    for name, text in _parameters(program, coupling):
        graph.add_node(name, kind="parameter", text=text)
    for tail, head, dim in _edges(coupling):
        graph.add_edge(tail, head, text=f"dim {dim}")
    return graph


def _parameters(program: Program, coupling: Coupling) -> Iterator[tuple[str, str]]:
    reasons = {name: refusal.reason for name, refusal in coupling.refused}
    shown = {*coupling.by_parameter, *(n for n, why in reasons.items() if "stay" in why)}
    for site in sites_of(program):
        if site.name in shown:
            shape = "x".join(map(str, site.shape)) or "scalar"
            stays = reasons.get(site.name, "")
            yield site.name, f"{shape}\n{stays}" if "stay" in stays else shape


def _edges(coupling: Coupling) -> Iterator[tuple[str, str, int]]:
    for name, places in coupling.by_parameter.items():
        for place in places:
            for at in coupling.layers_of(place):
                layer = coupling.layers[at]
                makes = name in layer.makers and place.dim == _made_dim(coupling, name, at)
                ends = (name, f"layer {layer.name}") if makes else (f"layer {layer.name}", name)
                yield (*ends, place.dim)


def _made_dim(coupling: Coupling, name: str, layer: int) -> int:
    """Return the dimension of the channels that a parameter makes: the first where they lie."""
    dims = [p.dim for p in coupling.by_parameter[name] if layer in coupling.layers_of(p)]
    return min(dims)


def to_dot(graph: nx.DiGraph[str]) -> str:
    """Return a `channel_graph` as text for graphviz."""
    lines = ["digraph channels {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
    for name, data in graph.nodes(data=True):
        shape = "box" if data["kind"] == "parameter" else "ellipse"
        label = _quote(f"{name}\n{data['text']}")
        lines.append(f"  {_quote(name)} [shape={shape}, label={label}];")
    for tail, head, data in graph.edges(data=True):
        lines.append(f"  {_quote(tail)} -> {_quote(head)} [label={_quote(data['text'])}];")
    return "\n".join([*lines, "}"]) + "\n"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def draw_channels(program: Program, coupling: Coupling, path: str | Path) -> None:
    """Write a picture of channel groups: a .dot file for graphviz, or an .svg by matplotlib."""
    file = Path(path)
    if file.suffix not in (".dot", ".svg"):
        raise FormatError(f"{file}: a picture of channels is a .dot or an .svg file")
    graph = channel_graph(program, coupling)
    write_text(file, to_dot(graph) if file.suffix == ".dot" else _svg(graph))


def _svg(graph: Any) -> str:
    import networkx as nx

    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise FormatError(_MISSING) from error
    columns = _columns(graph)
    for at, nodes in enumerate(columns):
        for node in nodes:
            graph.nodes[node]["subset"] = at
    places: Any = nx.multipartite_layout(graph) if len(graph) else {}
    tallest = max(map(len, columns), default=1)
    figure = figures.Figure(figsize=(2 + 2.2 * len(columns), 1 + 0.7 * tallest))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    labels = {name: f"{name}\n{data['text']}" for name, data in graph.nodes(data=True)}
    colours = ["#cfe2f3" if d["kind"] == "layer" else "#eeeeee" for _, d in graph.nodes(data=True)]
    nx.draw_networkx_nodes(graph, places, ax=axes, node_color=colours, node_size=1600)
    nx.draw_networkx_edges(graph, places, ax=axes, edge_color="#888888", node_size=1600)
    nx.draw_networkx_labels(graph, places, labels, ax=axes, font_size=6)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _columns(graph: Any) -> list[list[str]]:
    """Return the nodes in columns: each behind those before it that lead to it."""
    column: dict[str, int] = {}
    for node in _in_order(graph):
        before = [column[tail] for tail in graph.predecessors(node) if tail in column]
        column[node] = 1 + max(before, default=-1)
    columns: list[list[str]] = [[] for _ in range(1 + max(column.values(), default=-1))]
    for node, at in column.items():
        columns[at].append(node)
    return columns


def _in_order(graph: Any) -> Iterator[str]:
    """Yield parameters in order, and each layer behind the first that makes its channels."""
    seen: set[str] = set()
    for node, data in graph.nodes(data=True):
        if data["kind"] == "parameter":
            yield node
            layers = [head for head in graph.successors(node) if head not in seen]
            seen.update(layers)
            yield from layers
