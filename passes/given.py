"""Masks that the caller made (torch.nn.utils.prune.CustomFromMask), and no mask at all."""

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

    Args:
        file: a file of masks, see `fxprune.files.masks.read_masks`, which may have masks for other
            parameters too; None to take the fact GivenMasks.
        ones: take a mask of ones for each parameter (torch.nn.utils.prune.Identity).
    """

    name: ClassVar[str] = "given"
    needs: ClassVar = (Selection, GivenMasks)
    gives: ClassVar = (NewMasks,)

    file: str | None = None
    ones: bool = False

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return the masks.

        Raises:
            PassError: a selected parameter has no mask.
            ShapeError: a mask has another shape than its parameter.
            FormatError: the file cannot be read.
            MissingParameterError: a mask in the file is of no parameter.
        """
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
    """Read the masks in a file, and hold them to the parameters of a Program.

    Raises:
        FormatError: the file cannot be read, or holds no masks.
        SelectError: a mask has the name of no parameter.
    """
    masks = read_masks(path, binary=False)
    try:
        return fit_masks(program, masks)
    except MissingParameterError as error:
        raise MissingParameterError(f"{path}: {error}") from error
