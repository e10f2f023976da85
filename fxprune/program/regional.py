"""The RegionalProgram: a model whose own Python code runs between regions captured as graphs."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch._guards import TracingContext

from fxprune.errors import FormatError
from fxprune.graphs import copy_graph, decode_graph, encode_graph
from fxprune.obstacles import Obstacle
from fxprune.parts import bind
from fxprune.program import Captured, Program
from fxprune.region import Region
from fxprune.source import own_results

__all__ = ["RegionalCaptured", "RegionalProgram", "check_whole", "masking_everywhere"]

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
    ) -> RegionalProgram:
        """Build a RegionalProgram around a private copy of the source, which becomes its own.

        Args:
            tree: the copy; the modules with parameters are Parts.
            graphs: the regions' graphs, of names in the tree.
            captured: a RegionalCaptured.
            like: see `Program.assemble`.

        Raises:
            CaptureError: a name in the tree's root is one that a GraphModule needs itself.
        """
        program: Any = super().assemble(tree, graphs, captured, like=like)
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
