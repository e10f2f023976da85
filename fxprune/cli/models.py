"""A model from a factory or a file, its weights from a file, and inputs for it."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.cli.output import Progress
from fxprune.cli.request import CommandError, Request, parse_batch
from fxprune.compiler import capture
from fxprune.files import load, load_pt2, read_weights
from fxprune.program import Program, copy_model, parameters
from fxprune.words import did_you_mean, dtype_name

_USAGE = "give package.module:factory, file.py:factory, a .fxp or a .pt2 file"


@dataclass(frozen=True)
class Loaded:
    """A model and its example inputs."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def kind(self) -> str:
        """The class name of the model."""
        return type(self.model).__name__

    @property
    def device(self) -> torch.device | None:
        """Where the model's first parameter is."""
        return next((p.device for p in self.model.parameters()), None)


def load_model(spec: str) -> Loaded:
    """Return what a factory makes: a model, or (model, args, kwargs); or what a file holds."""
    if spec.lower().endswith(".fxp"):
        return Loaded(load(spec))
    if spec.lower().endswith(".pt2"):
        return Loaded(capture(load_pt2(spec)))
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise CommandError(f"{spec}: this names no factory; {_USAGE}")
    module = _import(place)
    factory = _attribute(module, name, spec)
    if isinstance(factory, nn.Module):
        return Loaded(factory)
    if not callable(factory):
        raise CommandError(f"{spec}: this is a {type(factory).__name__}; {_USAGE}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raised = _describe(error, module.__file__)
        raise CommandError(
            f"{spec}: the factory, called without arguments, raised {raised}"
        ) from error
    return _as_loaded(made, spec)


def load_weights(loaded: Loaded, path: Path) -> None:
    """Load a weights file into a model; of a tied parameter one name will do."""
    state = read_weights(path)
    own: dict[str, Any] = loaded.model.state_dict(keep_vars=True)
    faults = _key_faults(own, state) or _tensor_faults(own, state)
    if not faults:
        try:
            loaded.model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            faults = [str(error)]
    if faults:
        raise CommandError(
            f"{path}: these weights do not fit {loaded.kind}: {'; '.join(faults)}; give a file of "
            "this model's own state_dict()"
        )


def check_call(loaded: Loaded) -> None:
    """Check that a model runs on its inputs, on a copy; a Program may go without inputs."""
    if isinstance(loaded.model, Program) and not loaded.args and not loaded.kwargs:
        return
    _check_arguments(loaded)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy_model(loaded.model).eval()(*loaded.args, **loaded.kwargs)
    except Exception as error:  # forward may raise anything
        raise CommandError(
            f"{loaded.kind} does not run on {_shapes(loaded) or 'no input'}: {_describe(error)}; "
            "give each --input the SHAPE, DTYPE and range that forward takes"
        ) from error


def _check_arguments(loaded: Loaded) -> None:
    try:
        signature = inspect.signature(loaded.model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*loaded.args, **loaded.kwargs)
    except TypeError as error:
        raise CommandError(
            f"{loaded.kind}.forward takes ({', '.join(signature.parameters)}), but: {error}; give "
            "an --input for each, in order or as NAME=SHAPE"
        ) from error


def _import(place: str) -> types.ModuleType:
    try:
        return _execute(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        mend = f"; {_USAGE}" if isinstance(error, ModuleNotFoundError) else ""
        raise CommandError(
            f"{place}: cannot be imported: {_describe(error, place)}{mend}"
        ) from error


def _execute(path: Path) -> types.ModuleType:
    """Run a file as a module, without leaving bytecode beside it."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise CommandError(f"{path}: this {what}; {_USAGE}")
    module = types.ModuleType(f"fxprune_model_{path.stem}")
    module.__file__ = str(path)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[module.__name__] = module
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def _attribute(module: types.ModuleType, name: str, spec: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [other for other in dir(found) if not other.startswith("_")]
            hint = did_you_mean(part, known, _USAGE)
            raise CommandError(f"{spec}: there is no {part!r}; {hint}")
        found = getattr(found, part)
    return found


def _as_loaded(made: Any, spec: str) -> Loaded:
    parts = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made,)
    model, args, kwargs = cast(
        "tuple[Any, Any, Any]", (*parts, *(None, (), None)[len(parts) :])[:3]
    )
    if isinstance(args, torch.Tensor):
        args = (args,)
    fits = isinstance(args, tuple | list) and isinstance(kwargs, Mapping | None)
    if not isinstance(model, nn.Module) or len(parts) > 3 or not fits:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise CommandError(
            f"{spec}: the factory returned {'(' + kinds + ')' if len(parts) > 1 else kinds}; it "
            "must return an nn.Module, or (model, args, kwargs)"
        )
    return Loaded(model, tuple(args), dict(kwargs or {}))


def _key_faults(own: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> list[str]:
    there = {id(own[key]) for key in state if key in own}
    missing = [key for key in own if key not in state and id(own[key]) not in there]
    unexpected = [key for key in state if key not in own]
    texts = {"missing": missing, "unexpected": unexpected}
    return [f"{what} {parameters.quote(keys)}" for what, keys in texts.items() if keys]


def _tensor_faults(own: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> list[str]:
    faults: list[str] = []
    first: dict[int, str] = {}
    for key, new in state.items():
        old, tied = own[key], first.setdefault(id(own[key]), key)
        if not isinstance(old, torch.Tensor):
            faults.append(f"{key!r} is not a tensor in the model")
        elif new.shape != old.shape:
            faults.append(f"{key!r} has shape {tuple(new.shape)}, the model {tuple(old.shape)}")
        elif _number_kind(new) != _number_kind(old):
            faults.append(f"{key!r} is {new.dtype}, the model {old.dtype}")
        elif tied != key and not torch.equal(new, state[tied]):
            faults.append(f"{key!r} and {tied!r} are one parameter, but differ in the file")
    return [*faults[:6], *["..."] * (len(faults) > 6)]


def _number_kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _shapes(loaded: Loaded) -> str:
    leaves = pytree.tree_leaves((loaded.args, loaded.kwargs))
    found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return ", ".join(f"{dtype_name(x.dtype)}{list(x.shape)}" for x in found)


def _describe(error: BaseException, file: str | None = None) -> str:
    """Say what was raised, and at which line of a file of the user's, where it was there."""
    lines = [*str(error).strip().splitlines(), ""]
    text = f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
    stack = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text} ({file}, line {stack[-1].lineno})" if stack else text


_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
    )
}
_SHAPE = re.compile(r"\(\)|[0-9]{1,18}(,[0-9]{1,18})*,?")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_INPUT_USAGE = "write [NAME=][DTYPE:]SHAPE[:LOW..HIGH], as 1,3,32,32 or input_ids=int64:1,24:0..999"


@dataclass(frozen=True)
class InputOption:
    """One `--input`; without a name it is the next positional argument."""

    text: str
    name: str | None
    dtype: torch.dtype
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the tensor: floats are normal, or uniform in their range; whole numbers uniform."""
        try:
            return self._draw_values(generator)
        except (MemoryError, RuntimeError) as error:
            raise _fault(self.text, "is too large for the memory; give a smaller SHAPE") from error

    def _draw_values(self, generator: torch.Generator) -> torch.Tensor:
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
    """Parse an `--input`: float32 by default, whole numbers in 0..1; ranges include both ends."""
    name, equals, rest = text.rpartition("=")
    parts = rest.split(":")
    span = parts.pop() if ".." in parts[-1] else None
    if equals and not name.isidentifier():
        raise _fault(text, f"has {name!r} for a NAME; {_INPUT_USAGE}")
    if len(parts) not in (1, 2) or not _SHAPE.fullmatch(parts[-1]):
        raise _fault(text, f"has no SHAPE of whole numbers; {_INPUT_USAGE}")
    kind = parts[0] if len(parts) == 2 else "float32"
    if kind not in _DTYPES:
        raise _fault(text, f"has the unknown DTYPE {kind!r}; there are {', '.join(_DTYPES)}")
    shape = tuple(int(size) for size in re.findall("[0-9]+", parts[-1]))
    low, high = (None, None) if span is None else _range(text, span, _DTYPES[kind])
    return InputOption(text, name or None, _DTYPES[kind], shape, low, high)


def draw_inputs(
    texts: Sequence[str], device: torch.device | None = None, *, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Draw `(args, kwargs)` for all `--input` of a command, from a private generator."""
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


def _range(text: str, span: str, dtype: torch.dtype) -> tuple[float, float]:
    ends = span.split("..")
    if dtype.is_complex or len(ends) != 2:
        what = "complex numbers have no range" if dtype.is_complex else f"{span!r} is not a range"
        raise _fault(text, f"{what}; {_INPUT_USAGE}")
    try:
        low, high = (_end(end, dtype) for end in ends)
    except ValueError:
        raise _fault(text, f"the range {span!r} does not fit its dtype; {_INPUT_USAGE}") from None
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


def prepare_model(request: Request, progress: Progress) -> Loaded:
    """Make the model with its weights and inputs, and run it once."""
    progress("load")
    # Weights that a factory draws, and random methods without a seed, are the same every time.
    torch.manual_seed(0)
    loaded = load_model(request.model)
    if request.weights is not None:
        load_weights(loaded, request.weights)
    if request.inputs:
        loaded = Loaded(loaded.model, *draw_inputs(request.inputs, loaded.device))
    check_call(loaded)
    return loaded


def capture_model(request: Request, progress: Progress) -> Program:
    """Make the model and capture it."""
    loaded = prepare_model(request, progress)
    progress("capture")
    return capture(loaded.model, loaded.args, loaded.kwargs, batch=parse_batch(request.batch))
