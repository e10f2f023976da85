"""`--input [NAME=][DTYPE:]SHAPE[:LOW..HIGH]`: example inputs from a private generator."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.errors import FxpruneError

__all__ = ["CommandError", "InputOption", "draw_inputs", "parse_batch", "parse_input"]

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
    )
}
_SHAPE = re.compile(r"\(\)|[0-9]{1,18}(,[0-9]{1,18})*,?")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_USAGE = "write [NAME=][DTYPE:]SHAPE[:LOW..HIGH], as 1,3,32,32 or input_ids=int64:1,24:0..999"


class CommandError(FxpruneError, ValueError):
    """What the command line was given is at fault."""


@dataclass(frozen=True)
class InputOption:
    """One `--input`.

    Args:
        text: as it was written.
        name: the argument's name; None for the next positional one.
        dtype: the tensor's dtype.
        shape: the tensor's shape.
        low: the smallest value to draw; None for what the dtype has by default.
        high: the largest value to draw.
    """

    text: str
    name: str | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the tensor: floats are normal, or uniform in their range; whole numbers uniform.

        Raises:
            CommandError: it does not fit into memory.
        """
        try:
            return self._drawn(generator)
        except (MemoryError, RuntimeError) as error:
            raise _fault(self.text, "is too large for the memory; give a smaller SHAPE") from error

    def _drawn(self, generator: torch.Generator) -> torch.Tensor:
        if self.dtype.is_complex:
            return torch.randn(self.shape, generator=generator, dtype=self.dtype)
        if not self.dtype.is_floating_point:
            low, high = int(self.low or 0), int(1 if self.high is None else self.high)
            return torch.randint(low, high + 1, self.shape, generator=generator).to(self.dtype)
        if self.low is None or self.high is None:
            return torch.randn(self.shape, generator=generator).to(self.dtype)
        uniform = torch.rand(self.shape, generator=generator, dtype=torch.float64)
        # Not low + uniform * (high - low), which overflows for the widest range of float64.
        return (self.low * (1 - uniform) + self.high * uniform).to(self.dtype)


def parse_input(text: str) -> InputOption:
    """Parse one `--input`.

    Args:
        text: `[NAME=][DTYPE:]SHAPE[:LOW..HIGH]`: dtype float32 by default, sizes with commas, `()`
            for a scalar, both ends of the range included; whole numbers are 0..1 by default.

    Raises:
        CommandError: says which part is at fault.

    Example:
        >>> option = parse_input("input_ids=int64:1,24:0..999")
        >>> option.name, option.dtype, option.shape, option.low, option.high
        ('input_ids', torch.int64, (1, 24), 0, 999)
    """
    name, equals, rest = text.rpartition("=")
    parts = rest.split(":")
    span = parts.pop() if ".." in parts[-1] else None
    if equals and not name.isidentifier():
        raise _fault(text, f"has {name!r} for a NAME; {_USAGE}")
    if len(parts) not in (1, 2) or not _SHAPE.fullmatch(parts[-1]):
        raise _fault(text, f"has no SHAPE of whole numbers; {_USAGE}")
    kind = parts[0] if len(parts) == 2 else "float32"
    if kind not in _DTYPES:
        raise _fault(text, f"has the unknown DTYPE {kind!r}; there are {', '.join(_DTYPES)}")
    shape = tuple(int(size) for size in re.findall("[0-9]+", parts[-1]))
    low, high = (None, None) if span is None else _range(text, span, _DTYPES[kind])
    return InputOption(text, name or None, _DTYPES[kind], shape, low, high)


def draw_inputs(
    texts: Sequence[str], device: torch.device | None = None, *, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw `(args, kwargs)` for all `--input` of a command.

    Args:
        texts: the options, in order.
        device: where the tensors go.
        seed: of a private generator.

    Raises:
        CommandError: an option is at fault, or two have one name.
    """
    options = [parse_input(text) for text in texts]
    generator = torch.Generator().manual_seed(seed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for option in options:
        if option.name in kwargs:
            raise _fault(option.text, f"has the NAME {option.name!r} again; give each once")
        tensor = option.draw(generator).to(device)
        if option.name is None:
            args.append(tensor)
        else:
            kwargs[option.name] = tensor
    return tuple(args), kwargs


def parse_batch(text: str) -> int | None:
    """Parse `--batch`: a dimension, or "none" for fixed shapes.

    Raises:
        CommandError: it is neither.

    Example:
        >>> parse_batch("0"), parse_batch("none")
        (0, None)
    """
    if text.lower() == "none":
        return None
    if not _WHOLE.fullmatch(text):
        raise CommandError(f"--batch {text}: give the number of a dimension, as 0, or none")
    return int(text)


def _range(text: str, span: str, dtype: torch.dtype) -> tuple[float, float]:
    ends = span.split("..")
    if dtype.is_complex or len(ends) != 2:
        what = "complex numbers have no range" if dtype.is_complex else f"{span!r} is no range"
        raise _fault(text, f"{what}; {_USAGE}")
    try:
        low, high = (_end(end, dtype) for end in ends)
    except ValueError:
        raise _fault(text, f"the range {span!r} does not fit its dtype; {_USAGE}") from None
    if low > high:
        raise _fault(text, f"the range {span!r} is empty; write the smaller number first")
    return low, high


def _end(text: str, dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        least, most = torch.finfo(dtype).min, torch.finfo(dtype).max
        value: float = float(text)
    else:
        limits = None if dtype is torch.bool else torch.iinfo(dtype)
        least, most = (0, 1) if limits is None else (limits.min, limits.max)
        value = int(text) if _WHOLE.fullmatch(text) else math.nan
    if not least <= value <= most:
        raise ValueError(text)
    return value


def _fault(text: str, what: str) -> CommandError:
    return CommandError(f"--input {text}: {what}")
