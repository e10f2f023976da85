"""What a reader must know of a model that came with torch.nn.utils.prune's masks."""

from __future__ import annotations

from collections.abc import Iterable

from fxprune import tensors
from fxprune.importing import PATH
from fxprune.program import Program
from fxprune.reads import parameter_read
from fxprune.source import HookedMask

__all__ = ["adoption_notes"]


def adoption_notes(program: Program, hooked: Iterable[HookedMask]) -> tuple[str, ...]:
    """Say where the Program is right and the hooked model was not.

    Args:
        program: as captured, before the masks are inserted.
        hooked: the masks that the model's hooks had.
    """
    notes: list[str] = []
    for mask in hooked:
        aliases = tensors.aliases(program)[program.captured.first[mask.name]]
        if len(aliases) > 1:
            notes.append(
                f"{mask.name} is tied: its mask acts on all of {', '.join(aliases)}, where the "
                "hooked model masked one alias only"
            )
        if _is_read_elsewhere(program, mask.name):
            notes.append(
                f"{mask.name} is read by another module than its own, so its hook never fired and "
                "the hooked model used a stale weight; the program uses the masked one, which may "
                "change the function"
            )
    return tuple(notes)


def _is_read_elsewhere(program: Program, name: str) -> bool:
    """Tell whether code of another module than the owner reads the parameter."""
    owner = name.rpartition(".")[0]
    for graph in program.graphs.values():
        for node in graph.nodes:
            if parameter_read(program, node) != program.captured.first[name]:
                continue
            paths = [str(user.meta.get(PATH, owner)) for user in node.users]
            if any(path != owner and not path.startswith(f"{owner}.") for path in paths):
                return True
    return False
