"""The Program: a model as one torch.fx graph, or one a mode, over a tree of named tensors."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.errors import InvariantError, MissingParameterError
from fxprune.graphs import copy_graph, decode_graph, encode_graph
from fxprune.inputs import InputSpec
from fxprune.loading import aligned_state
from fxprune.nesting import Nesting
from fxprune.shell import MaskedReads, mask_of, raw_parameter

if TYPE_CHECKING:
    from fxprune.facts import RuleRecord

__all__ = ["Masks", "Program", "compile_forward"]

BOTH, TRAIN, EVAL = "both", "train", "eval"
# The parts of a module that hold its tensors and children.
_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
# The Program's own data beside its tree and graphs.
_DATA = ("inputs", "outputs", "deciders", "frozen", "first", "kind", "records", "notes")


class Program(fx.GraphModule, MaskedReads):
    """A captured model whose parameters are `get_attr` nodes of its graphs.

    Made by `fxprune.capture`. It has the source's keys, order and forward, and survives deepcopy,
    pickle, torch.save, torch.compile(fullgraph=True) and torch.export.

    Attributes:
        graphs: the graphs by mode: one under "both", or one each under "train" and "eval".
        inputs: names, shapes and dtypes of the arguments.
        masks: the masks by parameter name; any alias of a tied parameter finds its mask.
        deciders: the submodules whose training flags choose the graph, where there are two.
        first: every parameter's name, aliases included, in the source's order, mapped to the
            first name of the same parameter.
        records: what each pruning rule did, for the report.
        replaced: (old, new) Parameter pairs of a fork, until it is committed.
        notes: what a reader of the report must know, for example where capture changes the source.
    """

    graphs: dict[str, fx.Graph]
    inputs: InputSpec
    outputs: dict[str, Nesting]
    deciders: tuple[str, ...]
    frozen: dict[bool, dict[str, bool]]
    first: dict[str, str]
    kind: str
    records: tuple[RuleRecord, ...]
    notes: tuple[str, ...]
    replaced: list[tuple[nn.Parameter, nn.Parameter]]

    @classmethod
    def assemble(cls, tree: nn.Module, graphs: Mapping[str, fx.Graph], data: Mapping[str, Any]):
        """Build a Program around a module tree, graphs and data, sharing the tree's tensors."""
        program = cls(nn.Module(), fx.Graph(), "Program")
        for key in _TREE:
            program.__dict__[key] = tree.__dict__[key]
        program.__dict__.update(data)
        program.replaced = []
        program.graphs = dict(graphs)
        program.recompile()
        return program

    # Graphs and modes

    @property
    def mode(self) -> str:
        """The graph that runs: "both", or what the deciding training flags say.

        Raises:
            InvariantError: the flags disagree, so that no captured graph is right.
        """
        if BOTH in self.graphs:
            return BOTH
        on = [name for name in self.deciders if self.get_submodule(name).training]
        if len(on) == len(self.deciders):
            return TRAIN
        if not on:
            return EVAL
        off = [name for name in self.deciders if name not in on]
        raise InvariantError(
            f"the graph differs between train and eval mode, and the training flags disagree: on "
            f"for {_quoted(on)}, off for {_quoted(off)}; call train() or eval() on the program, or "
            "set these alike"
        )

    @property
    def graph(self) -> fx.Graph:
        """The graph of the current mode."""
        return self.graphs[self.mode] if self.graphs else self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        if not self.__dict__.get("graphs"):
            self._graph = graph
            self.graphs = {}
            return
        self.graphs[self.mode] = graph
        self.recompile()

    def recompile(self) -> Any:
        """Compile each graph's code, and the forward that chooses among them."""
        if not self.__dict__.get("graphs"):
            return super().recompile()
        code: Any = None
        cls = type(self)
        for mode, graph in self.graphs.items():
            graph.owning_module = self
            self._graph = graph
            code = super().recompile()
            setattr(cls, f"_forward_{mode}", cls.forward)
        cls.forward = compile_forward(self.inputs)
        return code

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves = self.inputs.flatten(args, kwargs)
        mode = self.mode
        # A graph may switch grad mode in a region; an error inside must not leave it switched.
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            found = self._flat(mode, leaves)
        return self.outputs[mode].unflatten(found)

    def _flat(self, mode: str, leaves: list[Any]) -> Any:
        if mode == BOTH:
            return self._forward_both(*leaves)
        if mode == TRAIN:
            return self._forward_train(*leaves)
        return self._forward_eval(*leaves)

    def train(self, mode: bool = True) -> Program:
        """Set the training flags as the source's own `train(mode)` did at capture."""
        super().train(mode)
        for name, flag in self.frozen[mode].items():
            self.get_submodule(name).training = flag
        return self

    # Parameters and masks

    @property
    def device(self) -> torch.device:
        """Where the tensors are; factory calls in the graphs read it."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Every parameter's names, keyed by the first of them, in the source's order."""
        groups: dict[str, list[str]] = {}
        for name, first in self.first.items():
            groups.setdefault(first, []).append(name)
        return {first: tuple(group) for first, group in groups.items()}

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """Return the module that holds a parameter, and the attribute's name there.

        Raises:
            MissingParameterError: there is no such parameter; suggests the nearest.
        """
        path, _, attribute = name.rpartition(".")
        if name in self.first:
            return self.get_submodule(path), attribute
        near = difflib.get_close_matches(name, self.first, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {_quoted(self.first)}"
        raise MissingParameterError(f"the program has no parameter {name!r}{hint}")

    def parameter(self, name: str) -> nn.Parameter:
        """Return the Parameter behind a name: the original, where it is masked.

        Raises:
            MissingParameterError: there is no such parameter.
        """
        found = raw_parameter(*self.owner(name))
        if found is None:
            raise MissingParameterError(f"the parameter {name!r} was taken out of the program")
        return found

    def value(self, name: str) -> torch.Tensor:
        """Return a parameter's current value, masked where it has a mask, without gradient."""
        mask = self.masks.get(name)
        raw = self.parameter(name).detach()
        return raw if mask is None else raw * mask

    @property
    def masks(self) -> Masks:
        """The masks by parameter name."""
        return Masks(self)

    # Copies and files

    def example(self, *, batch: int = 2, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Draw `(args, kwargs)` that fit, in the Program's own dtype and on its device."""
        dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
        return self.inputs.example(
            batch=batch, seed=seed, dtype=next(dtypes, None), device=self.device
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict; torch's half-pruned aliases of a tied parameter are accepted.

        Raises:
            StateError: two aliases of one parameter disagree.
        """
        return super().load_state_dict(
            aligned_state(self, state_dict), strict=strict, assign=assign
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        if id(self) in memo:
            return memo[id(self)]
        tree = nn.Module()
        for key in _TREE:
            tree.__dict__[key] = copy.deepcopy(self.__dict__[key], memo)
        graphs = {mode: copy_graph(graph) for mode, graph in self.graphs.items()}
        data = {key: self.__dict__[key] for key in _DATA}
        memo[id(self)] = Program.assemble(tree, graphs, data)
        return memo[id(self)]

    def __copy__(self) -> Program:
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tree = nn.Module()
        for key in _TREE:
            tree.__dict__[key] = self.__dict__[key]
        graphs = {mode: encode_graph(graph) for mode, graph in self.graphs.items()}
        return _rebuild, (tree, graphs, {key: self.__dict__[key] for key in _DATA})


class Masks(Mapping[str, torch.Tensor]):
    """A Program's masks by parameter name: iterates first names, finds any alias."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._program.first:
            raise KeyError(name)
        mask = mask_of(*self._program.owner(name))
        if mask is None:
            raise KeyError(name)
        return mask

    def __iter__(self) -> Iterator[str]:
        firsts = dict.fromkeys(self._program.first.values())
        return iter(tuple(name for name in firsts if self._has(name)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Masks({', '.join(self)})"

    def _has(self, name: str) -> bool:
        return mask_of(*self._program.owner(name)) is not None


def compile_forward(inputs: InputSpec) -> Any:
    """Return a `forward(self, ...)` with the source's argument names."""
    signature = inputs.signature
    parameters = list(signature.parameters)[1:]
    for name in parameters:
        if not name.isidentifier():
            raise InvariantError(f"the argument name {name!r} is not a Python identifier")
    split = len(inputs.names)
    args = "".join(f"{name}, " for name in parameters[:split])
    kwargs = ", ".join(f"{name!r}: {name}" for name in parameters[split:])
    head = ", ".join(["self", *parameters])
    namespace: dict[str, Any] = {}
    exec(f"def forward({head}):\n    return self._run(({args}), {{{kwargs}}})\n", namespace)
    forward = namespace["forward"]
    given = [p.default for p in signature.parameters.values() if p.default is not p.empty]
    forward.__defaults__ = tuple(given) or None
    return forward


def _rebuild(tree: nn.Module, graphs: Mapping[str, Any], data: Mapping[str, Any]) -> Program:
    decoded = {mode: decode_graph(graph) for mode, graph in graphs.items()}
    return Program.assemble(tree, decoded, data)


def _quoted(names: Any) -> str:
    shown = [repr(name) for name in list(names)[:6]]
    return ", ".join(shown) + (", ..." if len(names) > 6 else "")
