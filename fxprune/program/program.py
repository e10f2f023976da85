"""The Program: a model as one torch.fx graph, or one a mode, over a tree of named tensors.

Its forward has the source's argument names, its state dict the source's keys, and names that a
Program needs itself are refused.
"""

from __future__ import annotations

import copy
import keyword
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import CaptureError, InvariantError, PassError, PassTypeError, StateError
from fxprune.program import parameters
from fxprune.program.calls import guard
from fxprune.program.captured import Captured, CapturedModule
from fxprune.program.codegen import NestedCodeGen, compile_graph
from fxprune.program.copying import STATE, own_results
from fxprune.program.encoding import copy_graph, decode_graph, encode_graph
from fxprune.program.inputs import InputSpec
from fxprune.program.parameters import MaskedReads
from fxprune.program.records import RuleRecord
from fxprune.support import same_bits

BOTH, TRAIN, EVAL = "both", "train", "eval"
# The hooks around a module's forward, as torch.distributed.tensor registers them.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Program(fx.GraphModule, MaskedReads, CapturedModule):
    """A captured model whose parameters are `get_attr` nodes of its graphs.

    Made by `fxprune.capture`. It has the source's keys, order and forward, and survives deepcopy,
    pickle, torch.save, torch.compile(fullgraph=True) and torch.export.

    Attributes:
        graphs: the graphs by mode: one under "both", or one each under "train" and "eval".
        captured: what it knows beside its tensors and graphs.
    """

    graphs: dict[str, fx.Graph]
    _lineno_map = None  # torch.compile asks for that of torch.fx's own code

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
        """Build a Program that shares a module tree's tensors, its graphs given by mode.

        `like` is a Program with equal graphs, whose code will do; not `compiled`, its caller
        recompiles. CaptureError where the root has a name that a GraphModule needs itself.
        """
        check_names(tree, captured.kind)
        program = cls(nn.Module(), fx.Graph(), "Program")
        program.__dict__.update({key: vars(tree)[key] for key in STATE})
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
    def masks(self) -> parameters.Masks:
        """The masks by parameter name; any alias of a tied parameter finds its mask."""
        return parameters.masks(self)

    @property
    def inputs(self) -> InputSpec:
        """Names, shapes and dtypes of the arguments."""
        return self.captured.inputs

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Every parameter's names, keyed by the first of them, in the source's order."""
        return parameters.aliases(self)

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
        return parameters.parameter(self, name)

    def value(self, name: str) -> torch.Tensor:
        """Return a parameter's current value, masked where it has a mask, without gradient."""
        return parameters.value(self, name)

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
        cls: Any = type(self)
        for mode, graph in self.graphs.items():
            graph.owning_module = self
            # What runs the graph past forward, as torch.export does, flattens and nests as well.
            graph.set_codegen(NestedCodeGen(self.captured.outputs[mode]))
            self._graph = graph
            run, self._code = compile_graph(graph)
            setattr(cls, f"_forward_{mode}", guard(graph, run))
        cls.forward = forward_like(self.captured.inputs)
        return self._code

    def _take_code(self, like: Program) -> None:
        """Run the code of a Program with equal graphs: it reads tensors by their paths alone."""
        cls, other = type(self), type(like)
        self._code = like._code
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
            tree.__dict__.update({key: copy.deepcopy(vars(self)[key], memo) for key in STATE})
            graphs = {mode: copy_graph(graph) for mode, graph in self.graphs.items()}
            made = memo[id(self)] = Program.assemble(
                tree, graphs, copy.deepcopy(self.captured), like=self
            )
            made.__dict__.update({key: copy.copy(vars(self)[key]) for key in _HOOKS})
        return memo[id(self)]

    def __copy__(self) -> Program:
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tree = nn.Module()
        tree.__dict__.update({key: vars(self)[key] for key in STATE})
        graphs = {mode: encode_graph(graph) for mode, graph in self.graphs.items()}
        return _rebuild, (tree, graphs, copy.deepcopy(self.captured))


def mode_of(program: Program) -> str:
    """Return the graph that runs: "both", or what the deciding training flags say.

    InvariantError where the flags disagree, PassError where regions have a graph each.
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
        f"{parameters.quote(on)}, off for {parameters.quote(off)}; call train() or eval() on the "
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


def aligned_state(program: Program, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `state` with the keys that every alias of a tied, masked parameter has here.

    torch.nn.utils.prune masks one alias and leaves the others dense: their `P` is taken as
    `P_orig`, and the one mask serves all. StateError where two aliases have different values or
    masks.
    """
    tied = [names for names in parameters.aliases(program).values() if len(names) > 1]
    if not tied:
        return state
    aligned: Any = OrderedDict(state)
    # torch reads versions of the modules from this attribute of its ordered dict.
    aligned._metadata = getattr(state, "_metadata", None)
    for names in tied:
        _align_aliases(program, aligned, names)
    return aligned


def tie_again(program: Program) -> None:
    """Give the aliases of each parameter one tensor, and one mask, again."""
    for first, *others in parameters.aliases(program).values():
        owner, attribute = parameters.owner(program, first)
        for alias in others:
            other, name = parameters.owner(program, alias)
            for suffix in ("", "_orig"):
                if f"{attribute}{suffix}" in owner._parameters:
                    tensor = owner._parameters[f"{attribute}{suffix}"]
                    other._parameters[f"{name}{suffix}"] = tensor
            if f"{attribute}_mask" in owner._buffers and f"{name}_mask" in other._buffers:
                other._buffers[f"{name}_mask"] = owner._buffers[f"{attribute}_mask"]


def _align_aliases(program: Program, state: dict[str, Any], names: tuple[str, ...]) -> None:
    if names[0] not in parameters.masks(program):
        _same_value(state, [name for name in names if name in state], "values")
        return
    origs = [key for n in names for key in (f"{n}_orig", n) if key in state]
    masks = [f"{name}_mask" for name in names if f"{name}_mask" in state]
    if not origs or not masks:
        return
    orig, mask = _same_value(state, origs, "values"), _same_value(state, masks, "masks")
    for name in names:
        state.pop(name, None)
        state[f"{name}_orig"], state[f"{name}_mask"] = orig, mask


def _same_value(state: Mapping[str, Any], keys: list[str], what: str) -> Any:
    for key in keys[1:]:
        if not same_bits(state[keys[0]], state[key]):
            raise StateError(
                f"{keys[0]!r} and {key!r} are one tied parameter, but the state dict has different "
                f"{what} for them; make them equal, or untie them in the model"
            )
    return state[keys[0]] if keys else None


def forward_like(inputs: InputSpec) -> Any:
    """Return a `forward(self, ...)` that hands its arguments to `self._run`.

    torch.export and users name inputs by the signature, so that `*args, **kwargs` will not do.
    """
    signature = inputs.signature
    parameters = list(signature.parameters)[1:]
    for name in parameters:
        if not name.isidentifier():
            raise InvariantError(f"the argument name {name!r} is not a Python identifier")
    split = len(inputs.names)
    args = "".join(f"{name}, " for name in parameters[:split])
    kwargs = ", ".join(f"{name!r}: {name}" for name in parameters[split:])
    keyword_only = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    by_position = [name for name in parameters if name not in keyword_only]
    star = ["*", *keyword_only] if keyword_only else []
    head = ", ".join(["self", *by_position, *star])
    namespace: dict[str, Any] = {}
    exec(f"def forward({head}):\n    return self._run(({args}), {{{kwargs}}})\n", namespace)
    forward = namespace["forward"]
    given = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    forward.__defaults__ = tuple(given[name] for name in by_position if name in given) or None
    forward.__kwdefaults__ = {name: given[name] for name in keyword_only if name in given} or None
    return forward


_OWN = {"graphs", "captured", "device", "_run", "_forward_both", "_forward_train", "_forward_eval"}
RESERVED = frozenset(
    _OWN | (set(dir(fx.GraphModule)) - set(dir(nn.Module))) | {"_graph", "_code", "meta"}
)


def check_names(root: nn.Module, kind: str) -> None:
    """Raise a CaptureError for a parameter, buffer or submodule of a name that cannot be kept."""
    plain = [name for name, value in vars(root).items() if isinstance(value, torch.Tensor)]
    for name in (*root._parameters, *root._buffers, *root._modules, *plain):
        if name in RESERVED:
            raise CaptureError(
                f"{kind}.{name}: {name!r} is a name that torch.fx.GraphModule or Program needs "
                "itself; rename that attribute"
            )
    named = (*root.named_modules(), *root.named_parameters(), *root.named_buffers())
    for name in (name for name, _ in named):
        word = next((part for part in name.split(".") if keyword.iskeyword(part)), None)
        if word is not None:
            raise CaptureError(
                f"{kind}.{name}: {word!r} is a word of Python's own, which generated code cannot "
                "read as an attribute; rename it"
            )


def example_of(
    program: Program, *, batch: int = 2, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw `(args, kwargs)` that fit, in the Program's own dtype and on its device."""
    return program.captured.inputs.example(
        batch=batch, seed=seed, dtype=own_dtype(program), device=program.device
    )


def own_dtype(program: Program) -> torch.dtype | None:
    """Return the floating dtype that a Program is in now; None where it has no such parameter."""
    return next((p.dtype for p in program.parameters() if p.is_floating_point()), None)
