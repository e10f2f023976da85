"""State dicts for a Program whose tied parameters torch stored alias by alias."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fxprune import tensors
from fxprune.bits import same_bits
from fxprune.errors import StateError

if TYPE_CHECKING:
    from fxprune.program import Program

__all__ = ["aligned_state", "tie_again"]


def aligned_state(program: Program, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `state` with the keys that every alias of a tied, masked parameter has here.

    torch.nn.utils.prune masks one alias and leaves the others dense: their `P` is taken as
    `P_orig`, and the one mask serves all.

    Args:
        program: where the state will be loaded.
        state: tensors by key.

    Raises:
        StateError: two aliases of one parameter have different values or masks.
    """
    tied = [names for names in tensors.aliases(program).values() if len(names) > 1]
    if not tied:
        return state
    aligned: Any = OrderedDict(state)
    # torch reads versions of the modules from this attribute of its ordered dict.
    aligned._metadata = getattr(state, "_metadata", None)
    for names in tied:
        _align(program, aligned, names)
    return aligned


def tie_again(program: Program) -> None:
    """Give the aliases of each parameter one tensor, and one mask, again."""
    for first, *others in tensors.aliases(program).values():
        owner, attribute = tensors.owner(program, first)
        for alias in others:
            other, name = tensors.owner(program, alias)
            for suffix in ("", "_orig"):
                if f"{attribute}{suffix}" in owner._parameters:
                    tensor = owner._parameters[f"{attribute}{suffix}"]
                    other._parameters[f"{name}{suffix}"] = tensor
            if f"{attribute}_mask" in owner._buffers and f"{name}_mask" in other._buffers:
                other._buffers[f"{name}_mask"] = owner._buffers[f"{attribute}_mask"]


def _align(program: Program, state: dict[str, Any], names: tuple[str, ...]) -> None:
    if names[0] not in tensors.masks(program):
        _one(state, [name for name in names if name in state], "values")
        return
    origs = [key for n in names for key in (f"{n}_orig", n) if key in state]
    masks = [f"{name}_mask" for name in names if f"{name}_mask" in state]
    if not origs or not masks:
        return
    orig, mask = _one(state, origs, "values"), _one(state, masks, "masks")
    for name in names:
        state.pop(name, None)
        state[f"{name}_orig"], state[f"{name}_mask"] = orig, mask


def _one(state: Mapping[str, Any], keys: list[str], what: str) -> Any:
    for key in keys[1:]:
        if not same_bits(state[keys[0]], state[key]):
            raise StateError(
                f"{keys[0]!r} and {key!r} are one tied parameter, but the state dict has different "
                f"{what} for them; make them equal, or untie them in the model"
            )
    return state[keys[0]] if keys else None
