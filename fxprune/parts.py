"""The modules of a model's own classes inside a RegionalProgram: they read masked values."""

from __future__ import annotations

import copyreg
import types
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.shell import MaskedReads

if TYPE_CHECKING:
    from fxprune.regional import RegionalProgram

__all__ = ["Part", "RegionRoot", "bind", "can_be_part", "make_part"]

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
