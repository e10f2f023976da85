"""The Program: a model as one torch.fx graph, or one a mode, over a tree of named tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune import tensors
from fxprune.captured import Captured
from fxprune.codegen import NestedCodeGen, fast_graph
from fxprune.drawing import example_of
from fxprune.errors import InvariantError, PassError, PassTypeError
from fxprune.flat_regions import guarded
from fxprune.forward import forward_like
from fxprune.graphs import copy_graph, decode_graph, encode_graph
from fxprune.inputs import InputSpec
from fxprune.loading import aligned_state, tie_again
from fxprune.reserved import check_names
from fxprune.shell import MaskedReads
from fxprune.source import own_results

if TYPE_CHECKING:
    from fxprune.facts import RuleRecord

__all__ = ["BOTH", "EVAL", "TRAIN", "Captured", "Program", "check_program", "mode_of"]

BOTH, TRAIN, EVAL = "both", "train", "eval"
# The parts of a module that hold its tensors and children.
_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
# Those that hold the hooks around its forward, as torch.distributed.tensor registers them.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Program(fx.GraphModule, MaskedReads):
    """A captured model whose parameters are `get_attr` nodes of its graphs.

    Made by `fxprune.capture`. It has the source's keys, order and forward, and survives deepcopy,
    pickle, torch.save, torch.compile(fullgraph=True) and torch.export.

    Attributes:
        graphs: the graphs by mode: one under "both", or one each under "train" and "eval".
        captured: what it knows beside its tensors and graphs.
    """

    graphs: dict[str, fx.Graph]
    captured: Captured

    @classmethod
    def assemble(
        cls,
        tree: nn.Module,
        graphs: Mapping[str, fx.Graph],
        captured: Captured,
        *,
        like: Program | None = None,
        compiled: bool = True,
    ) -> Program:
        """Build a Program around a module tree, graphs and data, sharing the tree's tensors.

        Args:
            tree: the root of the tensors and submodules.
            graphs: by mode.
            captured: what the Program knows beside.
            like: a Program with equal graphs, whose code will do; None to compile them.
            compiled: whether to compile them now; else `recompile` is for the caller to call.

        Raises:
            CaptureError: a name in the tree's root is one that a GraphModule needs itself.
        """
        check_names(tree, captured.kind)
        program = cls(nn.Module(), fx.Graph(), "Program")
        for key in _TREE:
            program.__dict__[key] = tree.__dict__[key]
        program.captured = captured
        program.graphs = dict(graphs)
        _let_source_names_win(program)
        if like is not None:
            program._take_code(like)
        elif compiled:
            program.recompile()
        return program

    # What users ask

    @property
    def masks(self) -> tensors.Masks:
        """The masks by parameter name; any alias of a tied parameter finds its mask."""
        return tensors.masks(self)

    @property
    def inputs(self) -> InputSpec:
        """Names, shapes and dtypes of the arguments."""
        return self.captured.inputs

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Every parameter's names, keyed by the first of them, in the source's order."""
        return tensors.aliases(self)

    @property
    def records(self) -> tuple[RuleRecord, ...]:
        """What each pruning rule did."""
        return self.captured.records

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know."""
        return self.captured.notes

    def parameter(self, name: str) -> nn.Parameter:
        """Return the Parameter behind a name: the original one, where it is masked."""
        return tensors.parameter(self, name)

    def value(self, name: str) -> torch.Tensor:
        """Return a parameter's current value, masked where it has a mask, without gradient."""
        return tensors.value(self, name)

    def example(self, *, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Draw `(args, kwargs)` that fit; see `example_of`."""
        return example_of(self, batch=batch, seed=seed)

    # Graphs and modes

    @property
    def device(self) -> torch.device:
        """Where the tensors are; factory calls in the graphs read it."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def graph(self) -> fx.Graph:
        """The graph of the current mode."""
        return self.graphs[mode_of(self)] if self.__dict__.get("graphs") else self._graph

    @graph.setter
    def graph(self, g: fx.Graph) -> None:
        if self.__dict__.get("graphs"):
            self.graphs[mode_of(self)] = g
            self.recompile()
            return
        # torch.fx.GraphModule.__init__ sets an empty graph before there is a mode.
        self._graph = g
        self.graphs = {}

    def recompile(self) -> Any:
        """Compile each graph's code, and the forward that chooses among them."""
        if not self.__dict__.get("graphs"):
            return super().recompile()
        code: Any = None
        cls: Any = type(self)
        if hasattr(cls, "_wrapped_call"):
            # A subclass, as fully_shard makes one, would get a call of its own that calls itself.
            cls._wrapped_call = cls._wrapped_call
        for mode, graph in self.graphs.items():
            graph.owning_module = self
            # What runs the graph past forward, as torch.export does, flattens and nests as well.
            graph.set_codegen(NestedCodeGen(self.captured.outputs[mode]))
            self._graph = fast_graph(graph)
            code = super().recompile()
            self._graph = graph
            setattr(cls, f"_forward_{mode}", guarded(graph, cls.forward))
        cls.forward = forward_like(self.captured.inputs)
        return code

    def _take_code(self, like: Program) -> None:
        """Run the code of a Program with equal graphs: it reads tensors by their paths alone."""
        cls, other = type(self), type(like)
        for key in ("_code", "_lineno_map", "_prologue_start"):
            self.__dict__[key] = like.__dict__[key]
        for mode, graph in self.graphs.items():
            graph.owning_module = self
            graph.set_codegen(NestedCodeGen(self.captured.outputs[mode]))
            self._graph = graph
            setattr(cls, f"_forward_{mode}", getattr(other, f"_forward_{mode}"))
        cls.forward = other.forward

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = self.captured.inputs.flatten(args, kwargs)
        mode = mode_of(self)
        # A graph may switch grad mode in a region; an error inside must not leave it switched.
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            found = getattr(self, f"_forward_{mode}")(*leaves)
        return self.captured.outputs[mode].unflatten(found)

    def train(self, mode: bool = True) -> Program:
        """Set the training flags as the source's own `train(mode)` did at capture."""
        super().train(mode)
        for name, flag in self.captured.frozen[bool(mode)].items():
            self.get_submodule(name).training = flag
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply a function to every tensor, as `to` and `cuda` do; what is tied stays so."""
        found = super()._apply(fn, recurse)
        tie_again(self)  # torch maps a buffer, or a parameter that moves, once for each name
        return found

    # Copies and files

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict; torch's half-pruned aliases of a tied parameter are accepted.

        Raises:
            StateError: two aliases of one parameter disagree.
        """
        aligned = aligned_state(self, state_dict)
        found = super().load_state_dict(aligned, strict=strict, assign=assign)
        if assign:
            tie_again(self)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        if id(self) not in memo:
            # A layer that stays a module may hold results of autograd, as weight_norm's do.
            memo.update(own_results(self))
            tree = nn.Module()
            for key in _TREE:
                tree.__dict__[key] = copy.deepcopy(self.__dict__[key], memo)
            graphs = {mode: copy_graph(graph) for mode, graph in self.graphs.items()}
            made = memo[id(self)] = Program.assemble(
                tree, graphs, copy.deepcopy(self.captured), like=self
            )
            for key in _HOOKS:
                made.__dict__[key] = copy.copy(self.__dict__[key])
        return memo[id(self)]

    def __copy__(self) -> Program:
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tree = nn.Module()
        for key in _TREE:
            tree.__dict__[key] = self.__dict__[key]
        graphs = {mode: encode_graph(graph) for mode, graph in self.graphs.items()}
        return _rebuild, (tree, graphs, copy.deepcopy(self.captured))


def mode_of(program: Program) -> str:
    """Return the graph that runs: "both", or what the deciding training flags say.

    Raises:
        InvariantError: the flags disagree, so that no captured graph is right.
        PassError: its graphs are those of regions, which no one mode chooses.
    """
    if BOTH in program.graphs:
        return BOTH
    if TRAIN not in program.graphs:
        raise PassError(f"captured by regions: it has the graphs {', '.join(program.graphs)}")
    deciders = program.captured.deciders
    on = [name for name in deciders if program.get_submodule(name).training]
    if len(on) == len(deciders):
        return TRAIN
    if not on:
        return EVAL
    off = [name for name in deciders if name not in on]
    raise InvariantError(
        f"the graph differs between train and eval mode, and the training flags disagree: on for "
        f"{tensors.quoted(on)}, off for {tensors.quoted(off)}; call train() or eval() on the "
        "program, or set these alike"
    )


def check_program(program: object, step: str) -> None:
    """Raise a PassTypeError where what a step, as "save", was given is no Program."""
    if not isinstance(program, Program):
        kind = type(program).__name__
        raise PassTypeError(f"{step} takes a Program, not {kind}; call fxprune.capture first")


def _let_source_names_win(program: Program) -> None:
    """Let names of the source that Program uses for convenience mean what they meant there."""
    # A masked parameter is read by its own name too, and stored under others.
    named = (name for name in program.captured.first if "." not in name)
    root = (*program._modules, *program._parameters, *program._buffers, *named)
    cls: Any = type(program)
    for name in root:
        if hasattr(Program, name):
            setattr(
                cls, name, property(lambda self, name=name: MaskedReads.__getattr__(self, name))
            )


def _rebuild(tree: nn.Module, graphs: Mapping[str, Any], captured: Captured) -> Program:
    decoded = {mode: decode_graph(graph) for mode, graph in graphs.items()}
    return Program.assemble(tree, decoded, captured)
