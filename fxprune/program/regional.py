"""The RegionalProgram: a model whose own Python code runs between regions captured as graphs.

One region of a RegionalProgram: which graph it runs, and for which calls.

The modules of a model's own classes inside a RegionalProgram: they read masked values.

The line of a model's source that torch.export cannot take.

The arguments of a RegionalProgram: examples are made of the rows that it was captured with.
"""

from __future__ import annotations

import copy
import copyreg
import inspect
import linecache
import os
import traceback
import types
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._guards import TracingContext

from fxprune.errors import FormatError, InputError
from fxprune.program.captured import Captured
from fxprune.program.copying import own_results
from fxprune.program.encoding import copy_graph, decode_graph, encode_graph
from fxprune.program.inputs import InputSpec
from fxprune.program.parameters import MaskedReads
from fxprune.program.program import BOTH, EVAL, TRAIN, Program

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def twins(leaves: Sequence[Any]) -> tuple[int, ...]:
    """Return for each leaf the place of the first one that is the same tensor.

    Code may ask for that, as attention does for its query and key, and then a graph relies on it.
    """
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(id(leaf), i) if isinstance(leaf, torch.Tensor) else i
        for i, leaf in enumerate(leaves)
    )


def normal(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Return the arguments of a call in one form for all ways to write the same call."""
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, dict(kwargs)
    for name, value in list(bound.arguments.items()):
        if _is_default(value, signature.parameters[name]):
            del bound.arguments[name]
    return bound.args, bound.kwargs


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    default = parameter.default
    plain = value is None or isinstance(value, (bool, int, float, str))
    return plain and type(value) is type(default) and value == default


@dataclass(frozen=True)
class Region:
    """A submodule that was captured as a graph.

    Args:
        path: the submodule's name.
        inputs: what its graphs take.
        keys: the keys of its graphs in `RegionalProgram.graphs`, by mode.
        deciders: the submodules whose training flags choose the graph, where there are two.
        plain: whether the arguments of a call are put into one form first; not where hooks of the
            submodule see them.
        twins: which inputs must be the same tensor, see `twins`; empty where
            that does not matter.
    """

    path: str
    inputs: InputSpec
    keys: Mapping[str, str]
    deciders: tuple[str, ...]
    plain: bool
    twins: tuple[int, ...]

    def fit(
        self, program: RegionalProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Any] | None:
        """Return the run of the graph that a call asks for, or None where none is right for it.

        Args:
            program: whose graphs and flags count.
            args: positional inputs of the submodule.
            kwargs: its keyword inputs.
        """
        key = self._key(program)
        if key is None:
            return None
        if self.plain:
            args, kwargs = normal(program.get_submodule(self.path), args, kwargs)
        try:
            leaves = self.inputs.flatten(args, kwargs)
        except InputError:
            return None
        if self.twins and twins(leaves) != self.twins:
            return None
        return lambda: _run(program, key, leaves)

    def _key(self, program: RegionalProgram) -> str | None:
        if BOTH in self.keys:
            return self.keys[BOTH]
        flags = {program.get_submodule(name).training for name in self.deciders}
        return self.keys[TRAIN if flags.pop() else EVAL] if len(flags) == 1 else None


def _run(program: RegionalProgram, key: str, leaves: list[Any]) -> Any:
    # A graph may switch grad mode in a region; an error inside must not leave it switched.
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        found = getattr(program, f"_forward_{key}")(*leaves)
    return program.captured.outputs[key].unflatten(found)


_BINDING = "_fxprune_binding"


class Part(MaskedReads):
    """A module that runs its own class's code, with the current product for masked parameters.

    Its class is a subclass of the source's, made on the fly; pickles name the source's.
    """

    _fxprune_base: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        if made[0] is not copyreg.__newobj__:  # pyright: ignore
            return made
        return (_blank, (self._fxprune_base, isinstance(self, RegionRoot)), *made[2:])


class RegionRoot(Part):
    """The module that a region was captured from: a call runs the region's graph."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; the module's own code where the graph is not right for the call."""
        if torch.compiler.is_dynamo_compiling():
            # It traces the module's code, which reads masked values, as well as the graph's.
            return super().__call__(*args, **kwargs)
        binding: _Binding | None = self.__dict__.get(_BINDING)
        program = None if binding is None else binding.program
        if binding is None or program is None:
            return super().__call__(*args, **kwargs)
        fitting = program.captured.regions[binding.path].fit(program, args, kwargs)
        if fitting is None:
            return super().__call__(*args, **kwargs)
        return fitting()


class _Binding:
    """Leads from a region's module to its program; copies and pickles lead nowhere."""

    def __init__(self, path: str, program: RegionalProgram | None = None) -> None:
        self.path = path
        self._program = None if program is None else weakref.ref(program)

    @property
    def program(self) -> RegionalProgram | None:
        return None if self._program is None else self._program()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Binding:
        return _Binding(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Binding, (self.path,)


def bind(program: RegionalProgram, path: str) -> None:
    """Let the module at `path` run its region's graph with the tensors of `program`."""
    program.get_submodule(path).__dict__[_BINDING] = _Binding(path, program)


def can_be_part(module: nn.Module) -> bool:
    """Tell whether a module's class can be extended: not where its code is compiled or traced."""
    return not isinstance(module, (fx.GraphModule, torch.jit.ScriptModule))


def make_part(module: nn.Module, *, region: bool) -> None:
    """Change the class of a module in place.

    Args:
        module: of a private copy.
        region: whether a region was captured from it.
    """
    if isinstance(module, Part) or not can_be_part(module):
        return
    # Recurrent layers hold their weights in a list as well, which would pass the masks by.
    module.__dict__.pop("_flat_weights", None)
    module.__class__ = _part_class(type(module), region)


def _blank(base: type[nn.Module], region: bool) -> nn.Module:
    kind = _part_class(base, region)
    return nn.Module.__new__(kind)


@cache
def _part_class(base: type[nn.Module], region: bool) -> type[nn.Module]:
    first: type[nn.Module] = RegionRoot if region else Part
    names: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_fxprune_base": base,
    }
    if issubclass(base, nn.RNNBase):
        names["_flat_weights"] = property(_flat_weights, _ignored)
    bases = (first,) if base is nn.Module else (first, base)
    return types.new_class(base.__name__, bases, exec_body=lambda ns: ns.update(names))


def _flat_weights(layer: Any) -> list[Any]:
    return [getattr(layer, name, None) for name in layer._flat_weights_names]


def _ignored(layer: Any, value: Any) -> None:
    """Take no other list of weights than the parameters."""


_TORCH = str(Path(str(torch.__file__)).parent) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules", "")
_OWN = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Obstacle:
    """Where an export stopped, and why.

    Args:
        reason: the first line of what torch.export said.
        file: the source file; empty where it is not known.
        line: the line there, from 1.
        code: its text.
    """

    reason: str
    file: str = ""
    line: int = 0
    code: str = ""

    @property
    def place(self) -> str:
        """The short form, as `net.py, line 12`."""
        return f"{Path(self.file).name}, line {self.line}" if self.file else "no known line"

    @property
    def text(self) -> str:
        """The short form with the code."""
        return f"{self.place}: {self.code}" if self.code else self.place


def obstacle_of(model: nn.Module, error: BaseException) -> Obstacle:
    """Find the innermost line of the model's code that an error of torch.export came from.

    Args:
        model: what was exported; where no frame is of its code, its forward is named.
        error: what export raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    frames = list(_frames(error))
    own = [frame for frame in frames if not frame.filename.startswith(_TORCH)]
    if not frames:
        return Obstacle(reason, *forward_of(model))
    frame = (own or frames)[-1]
    return Obstacle(reason, frame.filename, frame.lineno or 0, (frame.line or "").strip())


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    """Yield the frames of the model's code, torch's own layers included, outermost first."""
    inside = False
    for frame in traceback.extract_tb(error.__traceback__):
        in_torch = frame.filename.startswith(_TORCH)
        # What comes before torch.export is the caller's code, not the model's.
        inside = inside or in_torch
        layer = frame.filename.startswith(_LAYERS) and not frame.filename.endswith("/module.py")
        if inside and (layer or not (in_torch or frame.filename.startswith((_OWN, "<")))):
            yield frame


def forward_of(model: nn.Module) -> tuple[Any, ...]:
    """Return file, line and code of a model's forward; nothing where they are not known."""
    try:
        forward = inspect.unwrap(model.forward)
        file = inspect.getsourcefile(forward) or ""
        line = inspect.getsourcelines(forward)[1]
    except (OSError, TypeError):
        return ()
    return file, line, linecache.getline(file, line).strip()


_SOURCE = "_fxprune_source"
_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


@dataclass
class RegionalCaptured(Captured):
    """What a RegionalProgram knows beside its tensors and graphs.

    Args:
        regions: the submodules that were captured as graphs, by name.
        obstacle: the line that torch.export cannot take.
    """

    regions: Mapping[str, Region] = field(default_factory=dict[str, Region])
    obstacle: Obstacle = field(default_factory=lambda: Obstacle(""))


class RegionalProgram(Program):
    """A captured model with a graph for each region, and the source's own code around them.

    Made by `fxprune.capture` of a model that torch.export cannot take whole. All that is done to a
    Program can be done to it, but for writing it as one graph. `graphs` has one graph a region, by
    the submodule's name, or `name:train` and `name:eval` where they differ.
    """

    captured: RegionalCaptured  # pyright: ignore[reportIncompatibleVariableOverride]

    @classmethod
    def assemble(
        cls,
        tree: nn.Module,
        graphs: Mapping[str, fx.Graph],
        captured: Captured,
        *,
        like: Program | None = None,
        compiled: bool = True,
    ) -> RegionalProgram:
        """Build a RegionalProgram around a private copy of the source, which becomes its own.

        Args:
            tree: the copy; the modules with parameters are Parts.
            graphs: the regions' graphs, of names in the tree.
            captured: a RegionalCaptured.
            like: see `Program.assemble`.
            compiled: see `Program.assemble`.

        Raises:
            CaptureError: a name in the tree's root is one that a GraphModule needs itself.
        """
        program: Any = super().assemble(tree, graphs, captured, like=like, compiled=compiled)
        program.__dict__[_SOURCE] = tree
        for path in program.captured.regions:
            bind(program, path)
        return program

    @property
    def graph(self) -> fx.Graph:
        """There is none of the whole, see `graphs`; asking for it raises PassError."""
        if TracingContext.try_get() is None:
            return super().graph
        # torch.compile asks every GraphModule for names, and then traces the code itself;
        # torch.export runs what it is given.
        return _refusing(self)

    @graph.setter
    def graph(self, g: fx.Graph) -> None:
        Program.graph.__set__(self, g)

    def recompile(self) -> Any:
        """Compile the regions' graphs; forward takes what the source's takes."""
        code = super().recompile()
        if self.__dict__.get("graphs"):
            cls: Any = type(self)
            cls.forward = _forward
        return code

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _own_source(self)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> RegionalProgram:
        if id(self) not in memo:
            source = _own_source(self)
            memo.update(own_results(source))
            tree = copy.deepcopy(source, memo)
            graphs = {key: copy_graph(graph) for key, graph in self.graphs.items()}
            captured = copy.deepcopy(self.captured)
            memo[id(self)] = RegionalProgram.assemble(tree, graphs, captured, like=self)
        return memo[id(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        graphs = {key: encode_graph(graph) for key, graph in self.graphs.items()}
        return _rebuild, (_own_source(self), graphs, copy.deepcopy(self.captured))


def check_whole(program: Program, target: Path) -> None:
    """Check that a Program can be written as one graph.

    Args:
        program: any Program.
        target: the file that it would be written to.

    Raises:
        FormatError: it was captured by regions; names the line that is in the way.
    """
    if not isinstance(program, RegionalProgram):
        return
    raise FormatError(
        f"{target}: a {target.suffix} file holds one graph, but {_why(program)}; write its weights "
        "as .safetensors, or rewrite that line without control flow that depends on values"
    )


@contextmanager
def masking_everywhere(program: Program) -> Generator[None]:
    """Let masks stand for any parameter of a RegionalProgram for a while.

    The Python code around the regions reads masked values, too; it is only not pruned by rules,
    which see graphs alone.
    """
    refused = program.captured.refused
    if isinstance(program, RegionalProgram):
        program.captured.refused = {}
    try:
        yield
    finally:
        program.captured.refused = refused


def _refusing(program: RegionalProgram) -> fx.Graph:
    """Return a graph that says, when it is run, why there is no graph of the whole."""
    graph = fx.Graph()

    def whole(*args: Any) -> None:
        raise FormatError(f"there is no graph of the whole program: {_why(program)}")

    graph.output(graph.call_function(whole))
    return graph


def _why(program: RegionalProgram) -> str:
    captured = program.captured
    return f"torch.export cannot take {captured.kind} whole ({captured.obstacle.text})"


def _forward(self: RegionalProgram, *args: Any, **kwargs: Any) -> Any:
    return self._run(args, kwargs)


def _own_source(program: RegionalProgram) -> nn.Module:
    """Return the module whose code runs, with the program's tensors, submodules and flag."""
    source: nn.Module = program.__dict__[_SOURCE]
    for key in _SHARED:
        source.__dict__[key] = program.__dict__[key]
    return source


def _rebuild(
    tree: nn.Module, graphs: Mapping[str, Any], captured: RegionalCaptured
) -> RegionalProgram:
    decoded = {key: decode_graph(graph) for key, graph in graphs.items()}
    return RegionalProgram.assemble(tree, decoded, captured)


@dataclass(frozen=True)
class RowSpec(InputSpec):
    """An InputSpec that keeps the example.

    A loop that hangs on values may not end for drawn ones, so that no values are drawn.

    Args:
        rows: the leaves of the example.
    """

    rows: tuple[Any, ...] = ()

    def example(
        self,
        *,
        batch: int = 2,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return rows of the example: the first ones for seed 0, else a draw with replacement.

        Args:
            batch: how many rows.
            seed: seed of a private generator.
            dtype: the dtype for inputs that had the model's own floating dtype.
            device: where the tensors go.

        Returns:
            `(args, kwargs)`.
        """
        leaves = list(self.rows)
        for i, spec in enumerate(self.inputs):
            if spec.dtype is None:
                continue
            leaf = leaves[i]
            for dim in (at for at, size in enumerate(spec.shape) if isinstance(size, str)):
                leaf = leaf.index_select(dim, _chosen(leaf.shape[dim], batch, seed).to(leaf.device))
            follows = dtype is not None and spec.dtype == self.float_dtype
            leaves[i] = leaf.clone().to(device, dtype if follows else None)
        args, kwargs = self.nesting.unflatten(leaves)
        return tuple(args), dict(kwargs)


def _chosen(there: int, batch: int, seed: int) -> torch.Tensor:
    if seed == 0:
        return torch.arange(batch) % there
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, there, (batch,), generator=generator)
