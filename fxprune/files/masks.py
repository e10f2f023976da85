"""How other tools keep masks: recognised by what a file holds, and written as they write it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from fxprune import tensors
from fxprune.errors import FormatError
from fxprune.program import Program

__all__ = ["FORMATS", "format_of", "masks_in", "state_for"]

_ASP = re.compile(r"(?P<path>(?:.*\.)?)(?:__)?(?P<name>[^.]+)_mma_mask", re.DOTALL)
_PARAMETRIZED = re.compile(
    r"(?P<path>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<at>[0-9]+)\.mask", re.DOTALL
)
_MASK, _ORIG = "_mask", "_orig"

Masks = dict[str, torch.Tensor]


def format_of(content: Mapping[Any, Any]) -> str:
    """Tell which tool's format a file has.

    Args:
        content: what the file holds, by key.

    Returns:
        "sparsifier", "nni", "asp", "parametrize", "torch", or "plain".
    """
    if set(content) == {"state", "groups"} and isinstance(content["state"], Mapping):
        return "sparsifier"
    if any(isinstance(value, Mapping) for value in content.values()):
        return "nni"
    keys = [str(key) for key in content]
    if any(_ASP.fullmatch(key) for key in keys):
        return "asp"
    if any(_PARAMETRIZED.fullmatch(key) for key in keys):
        return "parametrize"
    masks = [key for key in keys if key.endswith(_MASK)]
    paired = [key for key in masks if f"{key.removesuffix(_MASK)}{_ORIG}" in content]
    # Some keep the masks of a state dict alone.
    return "torch" if paired or (masks and len(masks) == len(keys)) else "plain"


def masks_in(content: Mapping[Any, Any]) -> Masks:
    """Return the masks that a file holds, by parameter name.

    Args:
        content: what the file holds, by key.

    Raises:
        FormatError: says which entry is no mask of a parameter.
    """
    return _READERS[format_of(content)](content)


def state_for(program: Program, kind: str) -> dict[str, Any]:
    """Return what a file of a tool's format holds for a masked Program.

    Args:
        program: not changed; its tensors are shared.
        kind: one of `FORMATS`.

    Raises:
        FormatError: the format cannot hold it.
    """
    return _WRITERS[kind](program)


def _tensor(key: object, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise FormatError(f"{str(key)[:100]!r} is a {type(value).__name__}, not a mask")
    return value


def _plain(content: Mapping[Any, Any]) -> Masks:
    return {str(key): _tensor(key, value) for key, value in content.items()}


def _torch(content: Mapping[Any, Any]) -> Masks:
    masks = {key: value for key, value in content.items() if str(key).endswith(_MASK)}
    alone = len(masks) == len(content)
    names = {key: str(key).removesuffix(_MASK) for key in masks}
    return {
        name: _tensor(key, content[key])
        for key, name in names.items()
        if alone or f"{name}{_ORIG}" in content
    }


def _asp(content: Mapping[Any, Any]) -> Masks:
    found: Masks = {}
    for key, value in content.items():
        parts = _ASP.fullmatch(str(key))
        if parts is not None:
            found[f"{parts['path']}{parts['name']}"] = _tensor(key, value)
    return found


def _parametrized(content: Mapping[Any, Any]) -> Masks:
    found: Masks = {}
    for key, value in content.items():
        parts = _PARAMETRIZED.fullmatch(str(key))
        if parts is None:
            continue
        name = f"{parts['path']}{parts['name']}"
        mask = _tensor(key, value)
        if name in found and found[name].shape != mask.shape:
            raise FormatError(f"{name!r} has masks of several shapes")
        # Parametrizations act one after another.
        found[name] = found[name] * mask if name in found else mask
    return found


def _sparsifier(content: Mapping[Any, Any]) -> Masks:
    found: Masks = {}
    for name, state in cast("Mapping[Any, Any]", content["state"]).items():
        if not isinstance(state, Mapping):
            raise FormatError(f"{str(name)[:100]!r} has no state, as torch.ao's sparsifiers have")
        mask = cast("Mapping[Any, Any]", state).get("mask")
        if mask is not None:
            found[str(name)] = _tensor(name, mask)
    return found


def _nni(content: Mapping[Any, Any]) -> Masks:
    found: Masks = {}
    for module, targets in content.items():
        if not isinstance(targets, Mapping):
            raise FormatError(
                f"{str(module)[:100]!r} has no masks by target, as NNI's modules have"
            )
        for target, mask in cast("Mapping[Any, Any]", targets).items():
            if mask is None:
                continue
            if str(target).startswith("_"):
                raise FormatError(
                    f"{str(module)[:100]!r} masks {str(target)[:60]!r}, which is no parameter; "
                    "leave that entry out"
                )
            found[f"{module}.{target}" if module else str(target)] = _tensor(target, mask)
    return found


_READERS: Mapping[str, Callable[[Mapping[Any, Any]], Masks]] = {
    "plain": _plain,
    "torch": _torch,
    "parametrize": _parametrized,
    "sparsifier": _sparsifier,
    "nni": _nni,
    "asp": _asp,
}
FORMATS = tuple(_READERS)


def _split(name: str) -> tuple[str, str]:
    path, _, attribute = name.rpartition(".")
    return path, attribute


def _to_plain(program: Program) -> dict[str, Any]:
    return dict(tensors.masks(program))


def _to_torch(program: Program) -> dict[str, Any]:
    return dict(program.state_dict())


def _to_sparsifier(program: Program) -> dict[str, Any]:
    masks = tensors.masks(program)
    groups = [{"tensor_fqn": name} for name in masks]
    return {"state": {name: {"mask": mask} for name, mask in masks.items()}, "groups": groups}


def _to_nni(program: Program) -> dict[str, Any]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, mask in tensors.masks(program).items():
        path, attribute = _split(name)
        found.setdefault(path, {})[attribute] = mask
    return found


def _to_parametrize(program: Program) -> dict[str, Any]:
    def keys(path: str, name: str) -> tuple[str, str]:
        head = f"{path}.parametrizations.{name}" if path else f"parametrizations.{name}"
        return f"{head}.original", f"{head}.0.mask"

    return _renamed(program, keys)


def _to_asp(program: Program) -> dict[str, Any]:
    def keys(path: str, name: str) -> tuple[str, str]:
        head = f"{path}." if path else ""
        return f"{head}{name}", f"{head}__{name}_mma_mask"

    state = _renamed(program, keys)
    # The tool writes zeros into the weights, and keeps its masks as truth values.
    for name, mask in tensors.masks(program).items():
        for alias in tensors.aliases(program)[name]:
            key, mask_key = keys(*_split(alias))
            if key in state:
                state[key] = tensors.value(program, name)
                state[mask_key] = mask != 0
    return state


def _renamed(
    program: Program, keys: Callable[[str, str], tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """Return the state dict with the original and the mask of each masked parameter renamed."""
    renamed: dict[str, str] = {}
    for alias in program.captured.first:
        if alias in tensors.masks(program):
            old = (f"{alias}{_ORIG}", f"{alias}{_MASK}")
            renamed.update(zip(old, keys(*_split(alias)), strict=True))
    return {renamed.get(key, key): value for key, value in program.state_dict().items()}


_WRITERS: Mapping[str, Callable[[Program], dict[str, Any]]] = {
    "plain": _to_plain,
    "torch": _to_torch,
    "parametrize": _to_parametrize,
    "sparsifier": _to_sparsifier,
    "nni": _to_nni,
    "asp": _to_asp,
}
