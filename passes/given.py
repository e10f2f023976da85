"""Masks that the caller made (torch.nn.utils.prune.CustomFromMask), and no mask at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors
import torch
from safetensors.torch import load_file

from fxprune import shards, tensors
from fxprune.errors import FormatError, PassError, PassTypeError, ShapeError
from fxprune.facts import GivenMasks, NewMasks, ParamSite, Selection
from fxprune.peers import Peers
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.sharded_masks import given_mask

__all__ = ["TakeMasks"]


@dataclass(frozen=True)
class TakeMasks(Analysis):
    """Take the masks that the caller gives, times the masks that are there.

    Args:
        file: a safetensors file with a mask by parameter name; None to take the fact GivenMasks.
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
        """
        sites, peers = facts[Selection].sites, facts.get(Peers)
        given = dict(facts[GivenMasks].tensors)
        if self.file is not None:
            given = read_masks(Path(self.file))
        found = {site.name: None if self.ones else self._mask(site, given) for site in sites}

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            for name, mask in found.items():
                if peers is not None and shards.is_sharded(tensors.parameter(program, name)):
                    yield name, given_mask(peers, program, name, mask)
                else:
                    yield name, _combined(program, name, mask)

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


def read_masks(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file of masks.

    Raises:
        FormatError: the file is missing or is no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise FormatError(f"{path}: masks cannot be read: {error}") from error


def _combined(program: Program, name: str, mask: torch.Tensor | None) -> torch.Tensor:
    parameter, old = tensors.parameter(program, name), tensors.masks(program).get(name)
    if old is None:
        old = torch.ones(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    else:
        old = old.detach().clone(memory_format=torch.contiguous_format)
    return old if mask is None else old * mask.detach().to(old)
