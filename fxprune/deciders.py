"""Which submodules' training flags choose between the train and the eval graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.flag_reads import Call, flag_reads, is_plain_layer
from fxprune.source import with_flags

__all__ = ["find_deciders"]


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
) -> list[Call]:
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


def _ran(source: nn.Module, call: Call, mode: bool, but: str | None) -> list[str]:
    """Make a call once more, with one flag flipped; return what it ran and what it returned."""
    inputs = (call.args, call.kwargs)
    with with_flags(source, mode, but), torch.no_grad(), _Functions(inputs) as functions:
        try:
            found = call.module(*call.args, **call.kwargs)
        except Exception as error:  # noqa: BLE001 - of code that never saw such flags together
            return [*functions.made, type(error).__name__]
    return [*functions.made, *functions.returned(found)]
