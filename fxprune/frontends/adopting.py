"""What a reader must know of a model that came with torch.nn.utils.prune's masks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxprune.errors import CaptureError
from fxprune.program import PATH, HookedMask, Program, parameter_read, parameters
from fxprune.support import same_bits


def adoption_notes(program: Program, hooked: Iterable[HookedMask]) -> tuple[str, ...]:
    """Say where the Program is right and the hooked model was not.

    Args:
        program: as captured, before the masks are inserted.
        hooked: the masks that the model's hooks had.
    """
    notes: list[str] = []
    hooked = tuple(hooked)
    owned = {id(parameters.owner(program, mask.name)[0]) for mask in hooked}
    for mask in hooked:
        aliases = parameters.aliases(program)[program.captured.first[mask.name]]
        owners = {id(parameters.owner(program, alias)[0]) for alias in aliases}
        if not owners <= owned:
            notes.append(
                f"{mask.name} is tied: its mask acts on all of {', '.join(aliases)}, where the "
                "hooked model masked one alias only"
            )
        if _is_read_elsewhere(program, aliases):
            notes.append(
                f"{mask.name} is read by another module than its own, so its hook never fired and "
                "the hooked model used a stale weight; the program uses the masked one, which may "
                "change the function"
            )
    return tuple(notes)


def joined_masks(program: Program, hooked: Iterable[HookedMask]) -> dict[str, torch.Tensor]:
    """Return one mask for each parameter, by the name under which it was hooked.

    Raises:
        CaptureError: two aliases of one parameter were hooked with different masks.
    """
    by_first: dict[str, HookedMask] = {}
    for mask in hooked:
        other = by_first.setdefault(program.captured.first[mask.name], mask)
        if not same_bits(other.mask, mask.mask):
            raise CaptureError(
                f"{other.name} and {mask.name} are one tied parameter, but torch.nn.utils.prune "
                "gave them different masks; remove one of them"
            )
    return {mask.name: mask.mask for mask in by_first.values()}


def _is_read_elsewhere(program: Program, aliases: tuple[str, ...]) -> bool:
    """Tell whether code of another module than the owners reads the parameter."""
    owners = tuple(alias.rpartition(".")[0] for alias in aliases)
    for graph in program.graphs.values():
        for node in graph.nodes:
            if parameter_read(program, node) != aliases[0]:
                continue
            paths = [str(user.meta.get(PATH, owners[0])) for user in node.users]
            if not all(_is_inside(path, owners) for path in paths):
                return True
    return False


def _is_inside(path: str, owners: tuple[str, ...]) -> bool:
    return any(path == owner or path.startswith(f"{owner}.") for owner in owners)
