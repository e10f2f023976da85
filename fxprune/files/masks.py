"""Masks in files of this and of other tools: read without running anything, matched, written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from fxprune.errors import FormatError, NotPrunedError, SelectError, ShapeError
from fxprune.files.formats import write_tensors
from fxprune.files.writers import PICKLED, read_content
from fxprune.program import Program, check_program, parameters
from fxprune.support import PathLike, replacing, sink
from fxprune.words import did_you_mean

_SAFE = ".safetensors"
# It is a defaultdict of dicts, which torch does not unpickle: a plain one takes its place.
_SPARSIFIER_STATE = ((lambda factory: {}, "collections.defaultdict"), dict)
_NESTED = ("nni", "sparsifier")


def read_masks(path: PathLike, *, binary: bool = True) -> dict[str, torch.Tensor]:
    """Read masks from a file of this or another tool's; nothing in the file is run.

    What the file holds says whose it is: a state dict of a model that torch.nn.utils.prune pruned
    (`P_orig` beside `P_mask`); one of a model whose masks are parametrizations
    (`parametrizations.P.0.mask`; several are multiplied); the `state_dict()` of a sparsifier of
    torch.ao.pruning, whose structured masks have one entry a row; NNI's masks by module and target;
    the buffers of apex's ASP (`__P_mma_mask`); or masks by parameter name.

    Args:
        path: a .safetensors file, or a .pt, .pth or .bin file, read with `weights_only=True`.
        binary: refuse other entries than 0 and 1. torch.nn.utils.prune multiplies by any.

    Returns:
        The masks by parameter name, on the CPU, in the dtypes of the file.

    Raises:
        FormatError: the file cannot be read, or what it holds are no masks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "masks.pt")
        ...     torch.save({"conv1": {"weight": torch.tensor([1.0, 0.0])}}, path)  # as NNI does
        ...     read_masks(path)
        {'conv1.weight': tensor([1., 0.])}
    """
    source = Path(path)
    content = read_content(source, also=_SPARSIFIER_STATE)
    try:
        if not isinstance(content, Mapping):
            raise FormatError(f"this holds a {type(content).__name__}, not masks by name")
        table = cast("Mapping[Any, Any]", content)
        masks = READERS[format_of(table)](table)
        if not masks:
            raise FormatError("there is no mask in this file")
        for name, mask in masks.items():
            _check_values(name, mask, binary=binary)
    except FormatError as error:
        raise FormatError(f"{source}: {error}") from error
    return masks


def fit_masks(program: Program, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return masks by the first names of a Program's parameters, in their order, if all fit.

    Args:
        program: not changed.
        masks: by any name of the parameters, also as a model has them that DataParallel, DDP or
            torch.compile wraps; one entry a row stands for all of the row.

    Raises:
        MissingParameterError: the program has no such parameter; suggests the nearest.
        ShapeError: a mask has another shape than its parameter.
        SelectError: two names of one parameter have different masks.

    Example:
        >>> import fxprune
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> list(fit_masks(program, {"weight": torch.ones(2, 3)}))
        ['weight']
    """
    fitting: Masks = {}
    names: dict[str, str] = {}
    for wrapped, given in masks.items():
        name, mask = _unwrap(program, wrapped), given
        shape = parameters.parameter(program, name).shape
        if mask.dim() == 1 < len(shape) and len(mask) == shape[0]:
            mask = mask.view(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()
        if mask.shape != shape:
            raise ShapeError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(shape)}"
            )
        first = program.captured.first[name]
        other = names.setdefault(first, name)
        if first in fitting and not torch.equal(fitting[first], mask):
            raise SelectError(
                f"{other!r} and {name!r} are one parameter, but their masks differ; give one"
            )
        fitting[first] = mask
    return {name: fitting[name] for name in parameters.aliases(program) if name in fitting}


def write_masks(program: Program, path: PathLike, *, format: str = "plain") -> Path:
    """Write a Program's masks, as this or another tool reads them.

    Args:
        program: a masked Program; not changed.
        path: a .safetensors, .pt, .pth or .bin file; an earlier one is replaced.
        format: "plain", masks by parameter name; "nni", by module and target, and
            "sparsifier", for `load_state_dict` of torch.ao.pruning's, not in safetensors; or a
            state dict that loads strictly into a model that the tool has prepared: "torch"
            (torch.nn.utils.prune), "parametrize" (torch.nn.utils.parametrize), "asp" (apex).

    Returns:
        The path.

    Raises:
        FormatError: the format is unknown or does not go with the suffix, or the file cannot be
            written; an earlier file is untouched.
        NotPrunedError: the program has no mask.
        PassTypeError: it is no Program.
    """
    check_program(program, "write_masks")
    target = Path(path)
    suffix = target.suffix.lower()
    if format not in FORMATS:
        hint = did_you_mean(str(format), FORMATS, f"there are {', '.join(FORMATS)}")
        raise FormatError(f"format={format!r} is not known; {hint}")
    if suffix not in (_SAFE, *PICKLED) or (format in _NESTED and suffix == _SAFE):
        known = ", ".join(PICKLED if format in _NESTED else (_SAFE, *PICKLED))
        raise FormatError(f"{target}: {format} masks are written to {known} files")
    if not parameters.masks(program):
        raise NotPrunedError("the program has no mask to write; prune it first")
    # Plain tensors: masks, and weights as a checkpoint has them.
    content: dict[str, Any] = pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach(), WRITERS[format](program)
    )
    with replacing(target) as temporary:
        if suffix == _SAFE:
            write_tensors(content, temporary)
        else:
            with sink(temporary) as file:
                torch.save(content, file)
    return target


_WRAPPERS = ("module", "_orig_mod")  # DataParallel's and DDP's attribute, torch.compile's


def _unwrap(program: Program, name: str) -> str:
    """Return the name without what wrappers put before it, where that is a parameter's name."""
    known = program.captured.first
    if not isinstance(name, str) or name in known:  # pyright: ignore[reportUnnecessaryIsInstance]
        return name
    parts = [part for part in name.split(".") if part != _WRAPPERS[1]]
    while parts and ".".join(parts) not in known and parts[0] in _WRAPPERS:
        parts = parts[1:]
    bare = ".".join(parts)
    return bare if bare in known else name


def _check_values(name: str, mask: torch.Tensor, *, binary: bool) -> None:
    if mask.is_complex() or mask.is_quantized or mask.layout is not torch.strided:
        raise FormatError(f"the mask of {name!r} is a {mask.dtype} tensor in {mask.layout}")
    if mask.is_meta:
        raise FormatError(f"the mask of {name!r} is on the meta device, where it has no values")
    if mask.dtype is torch.bool or not binary:
        return
    wide = mask if mask.dtype in _COMPARED else mask.to(torch.float32)
    if wide.is_floating_point() and not bool(torch.isfinite(wide).all()):
        raise FormatError(f"the mask of {name!r} has entries that are not finite")
    if not bool(((wide == 0) | (wide == 1)).all()):
        raise FormatError(
            f"the mask of {name!r} has other entries than 0 and 1; are these weights? "
            "binary=False takes them as factors"
        )


_COMPARED = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    }
)

_ASP = re.compile(r"(?P<path>(?:.*\.)?)(?:__)?(?P<name>[^.]+)_mma_mask", re.DOTALL)
_PARAMETRIZED = re.compile(
    r"(?P<path>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<at>[0-9]+)\.mask", re.DOTALL
)
_MASK, _ORIG = "_mask", "_orig"

Masks = dict[str, torch.Tensor]


def format_of(content: Mapping[Any, Any]) -> str:
    """Tell which of `FORMATS` a file has, by what it holds."""
    if set(content) == {"state", "groups"} and isinstance(content["state"], Mapping):
        return "sparsifier"
    if any(isinstance(value, Mapping) for value in content.values()):
        return "nni"
    keys = [str(key) for key in content]
    if any(_ASP.fullmatch(key) for key in keys):
        return "asp"
    if any(_PARAMETRIZED.fullmatch(key) for key in keys):
        return "parametrize"
    masks = [key for key in keys if key.endswith(_MASK)]
    paired = [key for key in masks if f"{key.removesuffix(_MASK)}{_ORIG}" in content]
    # Some keep the masks of a state dict alone.
    return "torch" if paired or (masks and len(masks) == len(keys)) else "plain"


def _tensor(key: object, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise FormatError(f"{str(key)[:100]!r} is a {type(value).__name__}, not a mask")
    return value


def _read_plain(content: Mapping[Any, Any]) -> Masks:
    return {str(key): _tensor(key, value) for key, value in content.items()}


def _read_torch(content: Mapping[Any, Any]) -> Masks:
    names = {key: str(key).removesuffix(_MASK) for key in content if str(key).endswith(_MASK)}
    alone = len(names) == len(content)
    return {
        name: _tensor(key, content[key])
        for key, name in names.items()
        if alone or f"{name}{_ORIG}" in content
    }


def _read_asp(content: Mapping[Any, Any]) -> Masks:
    matches = {key: _ASP.fullmatch(str(key)) for key in content}
    return {
        f"{parts['path']}{parts['name']}": _tensor(key, content[key])
        for key, parts in matches.items()
        if parts is not None
    }


def _read_parametrize(content: Mapping[Any, Any]) -> Masks:
    masks: Masks = {}
    for key, value in content.items():
        parts = _PARAMETRIZED.fullmatch(str(key))
        if parts is None:
            continue
        name = f"{parts['path']}{parts['name']}"
        mask = _tensor(key, value)
        if name in masks and masks[name].shape != mask.shape:
            raise FormatError(f"{name!r} has masks of several shapes")
        # Parametrizations act one after another.
        masks[name] = masks[name] * mask if name in masks else mask
    return masks


def _read_sparsifier(content: Mapping[Any, Any]) -> Masks:
    masks: Masks = {}
    for name, state in cast("Mapping[Any, Any]", content["state"]).items():
        if not isinstance(state, Mapping):
            raise FormatError(f"{str(name)[:100]!r} has no state, as torch.ao's sparsifiers have")
        mask = cast("Mapping[Any, Any]", state).get("mask")
        if mask is not None:
            masks[str(name)] = _tensor(name, mask)
    return masks


def _read_nni(content: Mapping[Any, Any]) -> Masks:
    masks: Masks = {}
    for module, targets in content.items():
        if not isinstance(targets, Mapping):
            raise FormatError(
                f"{str(module)[:100]!r} has no masks by target, as NNI's modules have"
            )
        for target, mask in cast("Mapping[Any, Any]", targets).items():
            if mask is None:
                continue
            if str(target).startswith("_"):
                raise FormatError(
                    f"{str(module)[:100]!r} masks {str(target)[:60]!r}, which is no parameter; "
                    "leave that entry out"
                )
            masks[f"{module}.{target}" if module else str(target)] = _tensor(target, mask)
    return masks


READERS: Mapping[str, Callable[[Mapping[Any, Any]], Masks]] = {
    "plain": _read_plain,
    "torch": _read_torch,
    "parametrize": _read_parametrize,
    "sparsifier": _read_sparsifier,
    "nni": _read_nni,
    "asp": _read_asp,
}
FORMATS = tuple(READERS)


def _split(name: str) -> tuple[str, str]:
    path, _, attribute = name.rpartition(".")
    return path, attribute


def _to_sparsifier(program: Program) -> dict[str, Any]:
    masks = parameters.masks(program)
    groups = [{"tensor_fqn": name} for name in masks]
    return {"state": {name: {"mask": mask} for name, mask in masks.items()}, "groups": groups}


def _to_nni(program: Program) -> dict[str, Any]:
    masks: dict[str, Masks] = {}
    for name, mask in parameters.masks(program).items():
        path, attribute = _split(name)
        masks.setdefault(path, {})[attribute] = mask
    return masks


def _to_parametrize(program: Program) -> dict[str, Any]:
    def keys(path: str, name: str) -> tuple[str, str]:
        head = f"{path}.parametrizations.{name}" if path else f"parametrizations.{name}"
        return f"{head}.original", f"{head}.0.mask"

    return _rename(program, keys)


def _to_asp(program: Program) -> dict[str, Any]:
    def keys(path: str, name: str) -> tuple[str, str]:
        head = f"{path}." if path else ""
        return f"{head}{name}", f"{head}__{name}_mma_mask"

    state = _rename(program, keys)
    # The tool writes zeros into the weights, and keeps its masks as truth values.
    for name, mask in parameters.masks(program).items():
        for alias in parameters.aliases(program)[name]:
            key, mask_key = keys(*_split(alias))
            if key in state:
                state[key] = parameters.value(program, name)
                state[mask_key] = mask != 0
    return state


def _rename(
    program: Program, keys: Callable[[str, str], tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """Return the state dict with the original and the mask of each masked parameter renamed."""
    renamed: dict[str, str] = {}
    for alias in program.captured.first:
        if alias in parameters.masks(program):
            old = (f"{alias}{_ORIG}", f"{alias}{_MASK}")
            renamed.update(zip(old, keys(*_split(alias)), strict=True))
    return {renamed.get(key, key): value for key, value in program.state_dict().items()}


# What a file of a tool's format holds for a masked Program, whose tensors are shared.
WRITERS: Mapping[str, Callable[[Program], dict[str, Any]]] = {
    "plain": lambda program: dict(parameters.masks(program)),
    "torch": lambda program: dict(program.state_dict()),
    "parametrize": _to_parametrize,
    "sparsifier": _to_sparsifier,
    "nni": _to_nni,
    "asp": _to_asp,
}
