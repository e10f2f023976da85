"""Uniform random numbers that are drawn again when they are read, and scores made of them.

The generator is called as torch.nn.utils.prune calls it, so the same seed gives the same masks.
"""

from __future__ import annotations

from typing import Any

import torch

from fxprune.errors import PassError
from fxprune.facts import ScoreSource
from fxprune.scan import CHUNK

__all__ = ["Draw", "RandomScores", "generator_of"]


class Draw:
    """A vector of uniform random numbers that is drawn again when it is read, not stored.

    The generator advances once, when the draw is made.

    Args:
        count: how many numbers.
        dtype: their dtype.
        generator: where they come from; its device is theirs.
    """

    def __init__(self, count: int, dtype: torch.dtype, generator: torch.Generator) -> None:
        self.count, self.dtype, self.device = count, dtype, generator.device
        self._state = generator.get_state()
        self._generator = torch.Generator(generator.device)
        self._generator.set_state(self._state)
        self._position = 0
        self._advance(generator, count)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return numbers start..stop; reads in order go on where the last one ended."""
        if start == stop:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        if not self._in_parts or start < self._position:
            self._generator.set_state(self._state)
            self._position = 0
        if not self._in_parts:
            return self._next(self._generator, self.count)[start:stop]
        self._advance(self._generator, start - self._position)
        self._position = stop
        return self._next(self._generator, stop - start)

    @property
    def _in_parts(self) -> bool:
        """Whether several calls give the numbers of one: only the CPU's generator does."""
        return self.device.type == "cpu"

    def _advance(self, generator: torch.Generator, count: int) -> None:
        """Draw and drop numbers, without room for all of them at once."""
        part = CHUNK if self._in_parts else max(count, 1)
        for start in range(0, count, part):
            self._next(generator, min(part, count - start))

    def _next(self, generator: torch.Generator, count: int) -> torch.Tensor:
        return torch.rand(count, dtype=self.dtype, device=self.device, generator=generator)


def generator_of(device: torch.device, seed: int | None) -> torch.Generator:
    """Return a generator with a seed, or torch's own one of the device.

    Raises:
        PassError: torch has none there.
    """
    if seed is not None:
        return torch.Generator(device).manual_seed(seed)
    if device.type == "cpu":
        return torch.default_generator
    module: Any = getattr(torch, device.type, None)
    generators = getattr(module, "default_generators", ())
    if not generators:
        raise PassError(f"there is no random generator on {device}; give the rule a seed")
    return generators[device.index or 0]


class RandomScores(ScoreSource):
    """Random scores of the living units.

    Args:
        units: how many units there are.
        kept: which are alive, or None for all.
        draw: where the numbers come from; None where nothing will be pruned.
        offset: where in the draw this parameter's numbers begin.
        largest: whether the largest numbers are pruned, instead of the smallest.
    """

    def __init__(
        self,
        units: int,
        kept: torch.Tensor | None,
        draw: Draw | None,
        offset: int,
        *,
        largest: bool,
    ) -> None:
        self.units, self._kept, self._draw = units, kept, draw
        self._offset, self._largest = offset, largest
        self.alive = units if kept is None else int(kept.count_nonzero())
        self._counted = (0, 0)  # units, and the living ones among them

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return torch.float32 if self._draw is None else self._draw.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which units are alive."""
        return None if self._kept is None else self._kept[start:stop]

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living units among start..stop."""
        first, last = self._living_before(start), self._living_before(stop)
        if self._draw is None:
            device = None if self._kept is None else self._kept.device
            return torch.zeros(last - first, device=device)
        numbers = self._draw.read(self._offset + first, self._offset + last)
        return -numbers if self._largest else numbers

    def sample(self, step: int) -> torch.Tensor:
        """Return the first of the numbers: at random, any are as good."""
        return self.chunk(0, -(-self.units // step))

    def _living_before(self, unit: int) -> int:
        """Count the living units before one, on from the last count."""
        if self._kept is None:
            return unit
        units, living = self._counted if self._counted[0] <= unit else (0, 0)
        living += int(self._kept[units:unit].count_nonzero())
        self._counted = (unit, living)
        return living
