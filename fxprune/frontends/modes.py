"""Live training flags: one graph for both modes where possible, else one each.

torch.export bakes the training flags of batch norm, dropout and recurrent layers into constants.
Where these layers alone read a flag, the graph of train mode tells that of eval mode. Any other
model is captured once in each mode; a constant that differs between the two graphs is replaced by
a read of its module's flag. Graphs that then do the same become one.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.fx.node import Node

from fxprune import ops
from fxprune.aliasing import Aliases
from fxprune.graphs import fingerprint
from fxprune.importing import PATH, path_of
from fxprune.program import BOTH, EVAL, TRAIN, Program
from fxprune.rewriter import Rewriter
from fxprune.shell import kind_of

__all__ = ["count_batch", "settle_modes", "tells_eval_mode"]


def count_batch(batches: torch.Tensor, training: bool) -> None:
    """Count a batch in batch norm's `num_batches_tracked`, in training only."""
    if training:
        batches.add_(1)


def tells_eval_mode(graph: fx.Graph, layers: Collection[str]) -> bool:
    """Tell whether a graph is that of eval mode but for the flags of torch's layers.

    Args:
        graph: as torch.export made it in train mode; no other code read a flag.
        layers: paths of the layers that read theirs.
    """
    live = set(_live_calls(graph))
    if any(path_of(node) not in layers or not _keeps_layout(node) for node in live):
        return False
    if any(isinstance(node.target, HigherOrderOperator) for node in graph.nodes):
        return False  # what its own graphs do was not looked at
    # In eval mode a dropout returns its input itself: what is written to one is in the other.
    aliases = Aliases(graph)
    return not any(node in live for written in graph.nodes for node in aliases.stale(written))


def _live_calls(graph: fx.Graph) -> Iterator[Node]:
    """Yield the calls that train mode may have made of a flag: its constants are those."""
    for node in graph.nodes:
        if node.op == "call_function" and any(_live_arguments(node)):
            yield node


def _live_arguments(node: Node) -> Iterator[int]:
    """Yield the positions of constants that are others in eval mode, if a flag chose them."""
    for position, arg in enumerate(ops.schema_arguments(node.target)):
        value = ops.argument(node, arg.name)
        is_flag = arg.name in _FLAGS and value is True and not _has_no_statistics(node)
        if is_flag or (arg.name == "dropout_p" and value != 0.0):
            yield position


_FLAGS = ("train", "training", "use_input_stats")


def _has_no_statistics(node: Node) -> bool:
    """Tell whether a norm takes those of its input in both modes, for want of others."""
    norms = ("batch_norm", "instance_norm")
    return ops.canonical_name(node.target) in norms and node.args[3] is None


def _keeps_layout(node: Node) -> bool:
    """Tell whether the layout of an operator's result in memory is the same in both modes.

    Where a dropout fills the gaps of its input, as in train mode alone, capture leaves out a
    `contiguous` that eval mode needs.
    """
    name, source = ops.canonical_name(node.target), cast("Node", node.args[0])
    # Attention has another layout in eval mode, but torch's layer makes it contiguous.
    return name in ops.RECURRENT or name == _ATTENTION or _is_dense(source.meta["val"])


_ATTENTION = "scaled_dot_product_attention"


def _is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor has no gaps in memory, in whatever order of its dimensions."""
    filled = 1
    for stride, size in sorted(zip(*map(_sizes, (tensor.stride(), tensor.shape)), strict=True)):
        if size != 1 and stride != filled:
            return False
        filled *= size
    return True


def _sizes(sizes: Any) -> list[int]:
    """Return sizes as they are in the example."""
    return [int(s.node.hint) if isinstance(s, torch.SymInt) else s for s in sizes]


def settle_modes(program: Program) -> None:
    """Make training flags live, and one graph of two that do the same.

    Args:
        program: as captured, with the graphs "train" and "eval", or with that of train mode for
            both; edited in place, and not compiled.
    """
    rewriter = Rewriter(program, "live-modes")
    if BOTH in program.graphs:
        _settle_train(rewriter, program.graphs[BOTH])
    else:
        _settle_both(rewriter, program)
    rewriter.check()


def _settle_train(rewriter: Rewriter, graph: fx.Graph) -> None:
    live = list(_live_calls(graph))
    # As if it were paired with eval mode's, which has no dropout of attention's weights.
    for node in sorted(live, key=lambda node: _is_of_attention(rewriter.program, node)):
        for position in list(_live_arguments(node)):
            _make_live(rewriter, node, position, cast("bool | float", node.args[position]))
    for node in graph.nodes:
        _settle_counter(rewriter, node)


def _is_of_attention(program: Program, node: Node) -> bool:
    layer = program.get_submodule(node.meta[PATH])
    return node.target is torch.ops.aten.dropout.default and not kind_of(layer).startswith("Drop")


def _settle_both(rewriter: Rewriter, program: Program) -> None:
    train, evaluation = program.graphs[TRAIN], program.graphs[EVAL]
    pairs = _pairs(train.nodes, evaluation.nodes)
    for in_train, in_eval in pairs:
        _settle_pair(rewriter, in_train, in_eval)
    for node in (*train.nodes, *evaluation.nodes):
        _settle_counter(rewriter, node)
    matched = {node for pair in pairs for node in pair}
    for node in (*train.nodes, *evaluation.nodes):
        if node not in matched:
            _settle_alone(rewriter, node)
    if _prints(train) == _prints(evaluation):
        _add_contiguous(rewriter, train, evaluation)
        program.graphs = {BOTH: train}
        program.captured.outputs = {BOTH: program.captured.outputs[TRAIN]}


def _prints(graph: fx.Graph) -> Any:
    return fingerprint(graph, skip=_differs_harmlessly, transparent=_is_transparent)


def _add_contiguous(rewriter: Rewriter, train: fx.Graph, evaluation: fx.Graph) -> None:
    """Let the train graph make contiguous what the eval graph does.

    Capture leaves out the call where the example was contiguous, which may depend on the mode.
    """
    here, there = _calls(train), _calls(evaluation)
    for node in evaluation.nodes:
        if not _is_contiguous(node) or node.args[0] not in there:
            continue
        same = here[there.index(node.args[0])]
        if not any(_is_contiguous(user) for user in same.users):
            made = rewriter.call(node.target, (same, *node.args[1:]), before=same.next)
            rewriter.replace_uses(same, made)


def _calls(graph: fx.Graph) -> list[Node]:
    return [n for n in graph.nodes if not _differs_harmlessly(n) and not _is_transparent(n)]


def _is_transparent(node: Node) -> bool:
    """Tell whether a node may stand in one graph only, with its input in its place in the other.

    Some code leaves out its dropout in eval mode, where it does nothing.
    """
    return _is_contiguous(node) or ops.canonical_name(node.target) in _DROPOUTS


_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def _is_contiguous(node: Node) -> bool:
    return node.target is torch.ops.aten.contiguous.default


def _pairs(train: Any, evaluation: Any) -> list[tuple[Node, Node]]:
    """Pair the calls of the two graphs: the n-th of an operator in a module with the n-th."""
    other = _numbered(evaluation)
    return [(node, other[key]) for key, node in _numbered(train).items() if key in other]


def _numbered(nodes: Any) -> dict[Any, Node]:
    seen: Counter[Any] = Counter()
    numbered: dict[Any, Node] = {}
    for node in nodes:
        if node.op != "call_function":
            continue
        key = (node.meta.get(PATH, ""), str(node.target))
        numbered[key, seen[key]] = node
        seen[key] += 1
    return numbered


def _settle_pair(rewriter: Rewriter, in_train: Node, in_eval: Node) -> None:
    """Replace the constants that differ by the modes: flags, and probabilities of dropout."""
    for position, (value, other) in enumerate(_arguments(in_train, in_eval)):
        flags = isinstance(value, bool) and isinstance(other, bool)
        chances = isinstance(value, float) and isinstance(other, float) and other == 0.0
        if value != other and (flags or chances):
            for node in (in_train, in_eval):
                _make_live(rewriter, node, position, value)


def _make_live(rewriter: Rewriter, node: Node, position: int, value: bool | float) -> None:
    """Let a constant of train mode be another one in eval mode: not that flag, or 0."""
    is_flag = isinstance(value, bool)
    live = _flag(rewriter, node, negated=is_flag and not value)
    if not is_flag:
        live = rewriter.call(operator.mul, (value, live), before=node)
    _set(rewriter, node, position, live)


def _arguments(a: Node, b: Node) -> list[tuple[Any, Any]]:
    """Return the positional arguments of two calls side by side, filled up with defaults."""
    defaults = [arg.default_value for arg in ops.schema_arguments(a.target)]
    length = max(len(a.args), len(b.args))
    filled = [[*node.args, *defaults[len(node.args) : length]] for node in (a, b)]
    return list(zip(*filled, strict=False))


def _set(rewriter: Rewriter, node: Node, position: int, value: Any) -> None:
    missing = ops.schema_arguments(node.target)[len(node.args) : position + 1]
    if missing:
        node.args = (*node.args, *(arg.default_value for arg in missing))
    rewriter.set_argument(node, position, value)


def _flag(rewriter: Rewriter, node: Node, *, negated: bool) -> Node:
    path = node.meta.get(PATH, "")
    flag = rewriter.read(f"{path}.training" if path else "training", before=node)
    return rewriter.call(operator.not_, (flag,), before=node) if negated else flag


def _settle_counter(rewriter: Rewriter, node: Node) -> None:
    """Let batch norm's counter count by the live flag."""
    if node.target is not torch.ops.aten.add_.Tensor or not isinstance(node.args[0], Node):
        return
    if not str(node.args[0].target).endswith("num_batches_tracked") or node.args[1] != 1:
        return
    flag = _flag(rewriter, node, negated=False)
    rewriter.call(count_batch, (node.args[0], flag), before=node)
    # A module called twice counts on from the first count, which is the buffer itself.
    rewriter.replace_uses(node, node.args[0])
    rewriter.erase(node)


def _settle_alone(rewriter: Rewriter, node: Node) -> None:
    """Make the flags live of a node that only one mode has."""
    if node.op != "call_function":
        return
    for position, arg in enumerate(ops.schema_arguments(node.target)):
        is_flag = arg.name in ("train", "training") and position < len(node.args)
        if is_flag and isinstance(node.args[position], bool):
            rewriter.set_argument(node, position, _flag(rewriter, node, negated=False))


def _differs_harmlessly(node: Node) -> bool:
    """Tell whether a node may stand in one graph only: batch counters and unread attributes."""
    if node.op == "get_attr":
        users = list(node.users)
        return all(
            _differs_harmlessly(u) or ops.canonical_name(u.target) in _DROPOUTS for u in users
        )
    return node.target is count_batch
