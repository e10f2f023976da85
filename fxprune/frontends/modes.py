"""Live training flags: one graph for both modes where possible, else one each.

torch.export bakes the training flags of batch norm, dropout and recurrent layers into constants.
Where these layers alone read a flag, the graph of train mode tells that of eval mode. Any other
model is captured once in each mode; a constant that differs between the two graphs is replaced by
a read of its module's flag. Graphs that then do the same become one.

Which submodules' training flags choose between the train and the eval graph.

Which calls of modules read which training flags while a model runs, and which code does.

Live devices: factory calls follow the Program when it is moved.
"""

from __future__ import annotations

import copy
import inspect
import operator
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch.fx.node import Node
from torch.nn.modules import batchnorm, instancenorm
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontends.importing import path_of
from fxprune.program import (
    BOTH,
    EVAL,
    PATH,
    TRAIN,
    Aliases,
    Program,
    count_batch,
    fingerprint,
    kind_of,
    ops,
    with_flags,
)
from fxprune.rewrite import Rewriter


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


class _Functions(TorchFunctionMode):
    """Records the torch functions that run, with their constants but for flags."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.made: list[str] = []
        # Where tensors come from; an id that is used again is that of a later result.
        self._sources: dict[int, str] = {}
        self._note("input", inputs)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A flag among the arguments, as dropout's, is live in the graph and chooses none.
        leaves = pytree.tree_leaves((args, kwargs))
        constants = [x for x in leaves if isinstance(x, (int, float)) and not isinstance(x, bool)]
        found = func(*args, **(kwargs or {}))
        self._note(f"call {len(self.made)}", found)
        self.made.append(f"{resolve_name(func) or func!r} {constants}")
        return found

    def _note(self, source: str, tree: Any) -> None:
        for place, leaf in enumerate(pytree.tree_leaves(tree)):
            if isinstance(leaf, torch.Tensor):
                self._sources[id(leaf)] = f"{source}, {place}"

    def returned(self, found: Any) -> list[str]:
        """Return the structure of what a module returned, and where each part comes from."""
        leaves, structure = pytree.tree_flatten(found)
        return [str(structure), *(self._sources.get(id(leaf), _constant(leaf)) for leaf in leaves)]


def _constant(leaf: Any) -> str:
    return repr(leaf) if isinstance(leaf, (int, float, str)) else type(leaf).__name__


def find_deciders(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """Flip each training flag alone and return the submodules that change what runs.

    A flag is flipped where it is read alone: in calls of the module whose code reads it.

    Args:
        source: a private copy of the model, on which the two captured graphs differ; runs, so its
            batch statistics change.
        args: example positional inputs.
        kwargs: example keyword inputs.

    Raises:
        CaptureError: no single flag changes anything, so no flag can choose the graph.
    """
    source, args, kwargs = _on_meta(source, args, kwargs)
    buffers = {name: value.clone() for name, value in source.named_buffers()}
    found: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            for call in _reading(source, args, kwargs, mode):
                base = _ran(source, call, mode, None)
                unknown = [name for name in call.read if name not in found]
                found |= {name for name in unknown if _ran(source, call, mode, name) != base}
    for name, value in source.named_buffers():
        value.data.copy_(buffers[name])
    if not found:
        raise CaptureError(
            "the graph differs between train and eval mode, but no submodule's training flag alone "
            "changes it; let forward decide on self.training of one module"
        )
    return tuple(sorted(found))


def _reading(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mode: bool
) -> list[FlagCall]:
    """Run a model in a mode; return the calls of modules whose code reads a flag."""
    modules = source.named_modules()
    names = {each: name for name, each in modules if each is source or not is_plain_layer(each)}
    with with_flags(source, mode), torch.no_grad(), flag_reads(names) as calls:
        source(*args, **kwargs)
    return calls


def _on_meta(
    source: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Move model and inputs to the meta device, where nothing is computed, if it runs there."""
    moved = copy.deepcopy(source).to("meta")
    there = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    try:
        for mode in (True, False):
            with with_flags(moved, mode), torch.no_grad():
                moved(*there[0], **there[1])
    except Exception:  # noqa: BLE001 - forward needs values, or reads a tensor that does not move
        return source, args, kwargs
    return moved, there[0], there[1]


def _ran(source: nn.Module, call: FlagCall, mode: bool, but: str | None) -> list[str]:
    """Make a call once more, with one flag flipped; return what it ran and what it returned."""
    inputs = (call.args, call.kwargs)
    with with_flags(source, mode, but), torch.no_grad(), _Functions(inputs) as functions:
        try:
            found = call.module(*call.args, **call.kwargs)
        except Exception as error:  # noqa: BLE001 - of code that never saw such flags together
            return [*functions.made, type(error).__name__]
    return [*functions.made, *functions.returned(found)]


@dataclass(eq=False)
class FlagCall:
    """One call of a module.

    Args:
        module: what was called.
        args: its positional inputs.
        kwargs: its keyword inputs.
        read: names of the modules whose flags its own code read, in that order.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    read: dict[str, None] = field(default_factory=dict[str, None])


@contextmanager
def flag_reads(names: Mapping[nn.Module, str]) -> Generator[list[FlagCall]]:
    """Note the calls whose own code reads a training flag.

    Args:
        names: the modules to watch, by full name; of a private copy, since their classes are
            other ones meanwhile. A read counts for the innermost of them that runs.

    Yields:
        The calls, each from its first read on.
    """
    calls: list[FlagCall] = []
    running: list[FlagCall] = []
    classes = {module: type(module) for module in names}
    try:
        for module, name in names.items():
            module.__class__ = _watched(classes[module], name, running, calls)
        yield calls
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


class _Unannounced:
    """Keeps a class's own `__init_subclass__`, which may keep a register, from running."""

    def __init_subclass__(cls) -> None:
        pass


def _watched(cls: type, name: str, running: list[FlagCall], calls: list[FlagCall]) -> Any:
    def read(self: nn.Module) -> bool:
        if running:
            if not running[-1].read:
                calls.append(running[-1])
            running[-1].read[name] = None
        return vars(self)["training"]

    def write(self: nn.Module, value: bool) -> None:
        vars(self)["training"] = value

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        running.append(FlagCall(self, args, kwargs))
        try:
            return cls.__call__(self, *args, **kwargs)
        finally:
            running.pop()

    members = {"training": property(read, write), "__call__": call, "__module__": cls.__module__}
    return type(cls.__name__, (_Unannounced, cls), members)


@dataclass(eq=False)
class Readers:
    """Who read a training flag.

    Args:
        others: whether any other code did, or wrote one, than that of torch's layers.
    """

    others: bool = False


@contextmanager
def readers(source: nn.Module) -> Generator[Readers]:
    """Note who reads the training flags of modules; of a module's `__dict__` reads are not seen.

    Args:
        source: a private copy of the model that runs meanwhile, in this thread.

    Yields:
        What is known so far.
    """
    noted, thread = Readers(), threading.get_ident()

    def read(self: nn.Module) -> bool:
        state = vars(self)
        if threading.get_ident() == thread and not _is_known(self, sys._getframe(1).f_code):
            noted.others = True
        found: Any = state["training"] if "training" in state else self.__getattr__("training")
        return found

    def write(self: nn.Module, value: bool) -> None:
        # A module that is being made has no flag yet. Above is torch's own __setattr__.
        written = "training" in vars(self) and sys._getframe(2).f_code not in _COPIES
        noted.others |= threading.get_ident() == thread and written
        vars(self)["training"] = value

    flag = property(read, write)
    # All modules have the flag among their own attributes, before which a property goes.
    nn.Module.training = flag  # pyright: ignore
    try:
        kinds = {type(module) for module in source.modules()}
        noted.others = any(inspect.getattr_static(kind, "training") is not flag for kind in kinds)
        yield noted
    finally:
        del nn.Module.training


def is_plain_layer(module: nn.Module) -> bool:
    """Tell whether a module is a layer of torch, whose flag is live, without code of others."""
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    own = type(module).__module__.startswith("torch.nn.modules.") and "forward" not in vars(module)
    return own and not any(hooks)


def layers_with_live_flags(source: nn.Module) -> set[str]:
    """Return the paths of torch's layers that hand their flag to an operator."""
    named = source.named_modules(remove_duplicate=False)
    return {name for name, m in named if isinstance(m, _LAYERS) and is_plain_layer(m)}


def _is_known(module: nn.Module, code: CodeType) -> bool:
    if code in _COPIES:
        return True
    return code in _READS and is_plain_layer(module) and _READS[code](module)


def _has_gradients(module: nn.Module) -> bool:
    """Tell whether a layer of a transformer never takes its fast path of eval mode."""
    return torch.is_grad_enabled() and all(p.requires_grad for p in module.parameters())


def _always(module: nn.Module) -> bool:
    return True


def _has_steady_statistics(norm: Any) -> bool:
    """Tell whether a norm hands the same statistics on in both modes: its own, or none."""
    held = {norm.running_mean is not None, norm.running_var is not None}
    return held == {norm.track_running_stats}


_DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ALWAYS = (*_DROPOUT_LAYERS, nn.FeatureAlphaDropout, nn.RReLU, nn.RNN, nn.GRU, nn.LSTM)
_LAYERS = (*_ALWAYS, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.MultiheadAttention)
# Code of torch that does nothing with its module's flag but hand it to an operator, count batch
# norm's batches, leave out the dropout of attention's weights and choose a way without gradients
# in eval mode; and when that is so.
_READS: dict[CodeType, Callable[[Any], bool]] = {
    **{kind.forward.__code__: _always for kind in _ALWAYS},
    batchnorm._BatchNorm.forward.__code__: _has_steady_statistics,
    instancenorm._InstanceNorm._apply_instance_norm.__code__: _has_steady_statistics,
    nn.MultiheadAttention.forward.__code__: _has_gradients,
    nn.TransformerEncoder.forward.__code__: _has_gradients,
    nn.TransformerEncoderLayer.forward.__code__: _has_gradients,
}
# Code that copies a flag, as torch.export does with that of the root.
_COPIES = frozenset([fx.GraphModule.__init__.__code__])

aten = torch.ops.aten


def live_devices(program: Program) -> None:
    """Replace the device that capture baked into calls by a read of the Program's device.

    The zeros that a recurrent layer starts from follow their input's dtype as well, as torch's
    layers make them. A model on several devices is left as it is.

    Args:
        program: as captured; edited in place, and not compiled.
    """
    tensors = (*program.parameters(), *program.buffers())
    devices = {tensor.device for tensor in tensors} or {torch.device("cpu")}
    if len(devices) > 1:
        return
    rewriter = Rewriter(program, "live-devices")
    baked = devices.pop()
    for graph in program.graphs.values():
        for node in list(graph.nodes):
            if node.op == "call_function":
                _start_from_input(rewriter, node)
        for node in list(graph.nodes):
            if node.op == "call_function":
                _read_device(rewriter, node, baked)
    rewriter.check()


def _read_device(rewriter: Rewriter, node: Node, baked: torch.device) -> None:
    for name, value in node.kwargs.items():
        if isinstance(value, torch.device) and value == baked:
            rewriter.set_keyword(node, name, rewriter.read("device", before=node))
    for position, value in enumerate(node.args):
        if isinstance(value, torch.device) and value == baked:
            rewriter.set_argument(node, position, rewriter.read("device", before=node))


def _start_from_input(rewriter: Rewriter, node: Node) -> None:
    """Make the zeros a recurrent layer starts from out of its input."""
    if ops.canonical_name(node.target) not in ops.RECURRENT:
        return
    source: Any = node.args[0]
    states = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    for state in states:
        if isinstance(state, Node) and state.target is aten.zeros.default:
            before = state.next
            if not _stands_before(source, state):
                before = node
            zeros = rewriter.call(aten.new_zeros.default, (source, state.args[0]), before=before)
            zeros.meta = {**state.meta, **zeros.meta}
            rewriter.replace_uses(state, zeros)
            rewriter.erase(state)


def _stands_before(node: Node, other: Node) -> bool:
    return node < other
