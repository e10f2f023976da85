"""Uniform random numbers that are drawn again when they are read, and scores made of them.

The generator is called as torch.nn.utils.prune calls it, so the same seed gives the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import Any, Protocol

import torch

from fxprune.errors import PassError
from fxprune.ranking.digits import CHUNK
from fxprune.ranking.kth import count_of, name_in_errors
from fxprune.rewrite import Scores, ScoreSource


class Draw:
    """A vector of uniform random numbers that is drawn again when it is read, not stored.

    The generator advances once, when the draw is made; its device is that of the numbers.
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
    """Return a generator with a seed, or torch's own one of a device; PassError if it has none."""
    if seed is not None:
        return torch.Generator(device).manual_seed(seed)
    if device.type == "cpu":
        return torch.default_generator
    module: Any = getattr(torch, device.type, None)
    generators = getattr(module, "default_generators", ())
    if not generators:
        raise PassError(f"there is no random generator on {device}; give the rule a seed")
    return generators[device.index or 0]


class _LivingUnits(Protocol):
    """Units, some of which are alive, with the dtype and the device to draw for; as Entries."""

    @property
    def units(self) -> int: ...
    @property
    def alive(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def living(self, start: int, stop: int) -> torch.Tensor | None: ...


class RandomScores(ScoreSource):
    """Random scores of the living units, all 0 without a draw: then nothing will be pruned.

    The numbers begin at `offset` in the draw; `largest` prunes the largest of them first.
    """

    def __init__(self, of: _LivingUnits, draw: Draw | None, offset: int, *, largest: bool) -> None:
        self._of, self._draw, self._offset, self._largest = of, draw, offset, largest
        self.units, self.alive = of.units, of.alive
        self._position = (0, 0)  # units, and the living ones among them

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return torch.float32 if self._draw is None else self._draw.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which units are alive."""
        return self._of.living(start, stop)

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living units among start..stop."""
        first, last = self._living_before(start), self._living_before(stop)
        if self._draw is None:
            return torch.zeros(last - first, device=self._of.device)
        numbers = self._draw.read(self._offset + first, self._offset + last)
        return -numbers if self._largest else numbers

    def sample(self, step: int) -> torch.Tensor:
        """Return the first of the numbers: at random, any are as good."""
        return self.chunk(0, -(-self.units // step))

    def _living_before(self, unit: int) -> int:
        """Count the living units before one, on from the last count."""
        units, alive = self._position if self._position[0] <= unit else (0, 0)
        for start in range(units, unit, CHUNK):
            stop = min(start + CHUNK, unit)
            living = self.living(start, stop)
            alive += stop - start if living is None else int(living.count_nonzero())
        self._position = (unit, alive)
        return alive


def random_scores(
    parts: Mapping[str, _LivingUnits],
    amount: float | int,
    scope: str,
    dim: int | None,
    generator_on: Callable[[torch.device], torch.Generator],
) -> Scores:
    """Draw scores as torch.nn.utils.prune does.

    "global" draws once for the entries of all parameters, "local" for each; `dim` None scores
    entries. `generator_on` is asked once for each device, and nothing is drawn where the amount is
    no unit; AmountError where it is more than is alive.
    """
    generator_on = cache(generator_on)
    largest, what = dim is None, "entries" if dim is None else "channels"
    sources: dict[str, RandomScores] = {}

    def add(group: Mapping[str, _LivingUnits]) -> None:
        alive, offset = sum(part.alive for part in group.values()), 0
        dtype = reduce(torch.promote_types, (part.dtype for part in group.values()))
        generator = generator_on(next(iter(group.values())).device)
        with name_in_errors(tuple(group)):
            count = count_of(amount, alive, what)
        draw = Draw(alive, dtype, generator) if count else None
        for name, part in group.items():
            source = sources[name] = RandomScores(part, draw, offset, largest=largest)
            offset += source.alive

    if scope == "global" and dim is None and parts:
        add(parts)
    else:
        for name, part in parts.items():
            add({name: part})
    return Scores(sources, dim=dim, prune_all_ties=dim is not None)
