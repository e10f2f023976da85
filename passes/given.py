"""Masks that the caller gives (torch.nn.utils.prune.CustomFromMask), or of ones (Identity)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from fxprune.errors import MissingParameterError, PassError, PassTypeError, ShapeError
from fxprune.files import fit_masks, read_masks
from fxprune.program import ParamSite, Program, parameters_of
from fxprune.ranking import Peers, given_mask
from fxprune.rewrite import Analysis, Facts, GivenMasks, NewMasks, Selection


@dataclass(frozen=True)
class TakeMasks(Analysis):
    """Take the masks that the caller gives, times the masks that are there.

    They are in the fact GivenMasks or in a file, which may have masks for other parameters too;
    with `ones` they are ones.
    """

    name: ClassVar[str] = "given"
    needs: ClassVar = (Selection, GivenMasks)
    gives: ClassVar = (NewMasks,)

    file: str | None = None
    ones: bool = False

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return the masks; one that is missing or has another shape is an error."""
        sites, peers = facts[Selection].sites, facts.get(Peers)
        given = dict(facts[GivenMasks].tensors)
        if self.file is not None:
            given = masks_of(program, Path(self.file))
        found = {site.name: None if self.ones else self._mask(site, given) for site in sites}

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            for name, mask in found.items():
                held = parameters_of(program)[name]
                if peers is not None and held.is_spread:
                    yield name, given_mask(peers, held, mask)
                else:
                    old = held.copy_mask()
                    yield name, old if mask is None else old * mask.detach().to(old)

        return NewMasks(tuple(found), make)

    def _mask(self, site: ParamSite, given: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = next((given[name] for name in site.aliases if name in given), None)
        if mask is None:
            where = f" in {self.file}" if self.file else ""
            raise PassError(f"there is no mask for {site.name!r}{where}; there are {list(given)}")
        if not isinstance(mask, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PassTypeError(f"the mask of {site.name!r} is no tensor")
        if mask.shape != site.shape:
            raise ShapeError(
                f"the mask of {site.name!r} has shape {tuple(mask.shape)}, the parameter "
                f"{tuple(site.shape)}"
            )
        return mask


def masks_of(program: Program, path: Path) -> dict[str, torch.Tensor]:
    """Read the masks in a file and find the parameters of a Program that they are for."""
    masks = read_masks(path, binary=False)
    try:
        return fit_masks(program, masks)
    except MissingParameterError as error:
        raise MissingParameterError(f"{path}: {error}") from error
