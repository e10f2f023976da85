"""Programs and weights as files: written whole or not at all, read without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from fxprune.errors import FormatError, FxpruneError
from fxprune.files.formats import SOURCE, WRITERS, check_format
from fxprune.files.source import write_source
from fxprune.program import Program, check_program, check_whole
from fxprune.support import PathLike, check_is_file, open_archive, read_safely, replacing, unpickle

_SAFE = ".safetensors"
PICKLED = (".pt", ".pth", ".bin")


def export(program: Program, path: PathLike) -> Path:
    """Write a Program in the format that the file's suffix names.

    `.pt2` (torch.export.load) and `.onnx` hold the graph of the current mode, with the symbolic
    dimensions of the Program dynamic; `.safetensors` holds `state_dict()`, which loads strictly
    into the source class after finalize; `.fxp` holds all of the Program, as `fxprune.save` writes
    it. `.py` is readable source with its weights in a `.safetensors` beside it. A file is moved
    into place when it is complete.

    Args:
        program: not changed.
        path: the file to write; an earlier one is replaced.

    Returns:
        The path.

    Raises:
        FormatError: the suffix is unknown, the file cannot be written there, or torch cannot
            export the Program to it; an earlier file is untouched.
        PassTypeError: it is no Program.

    Example:
        >>> import fxprune, tempfile
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export(program, Path(folder, "net.safetensors"))
        ...     sorted(read_weights(path))
        ['bias', 'weight']
    """
    check_program(program, "export")
    target = Path(path)
    suffix = target.suffix.lower()
    check_format(suffix)
    check_writable(program, target)
    if suffix == SOURCE:
        return write_source(program, target)
    with replacing(target) as temporary:
        try:
            WRITERS[suffix](program, temporary)
        except (FxpruneError, OSError):
            raise
        except Exception as error:  # exporters raise many kinds, all of which mean the same here
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FormatError(
                f"{target}: torch cannot write this program as {suffix}: {first_line}"
            ) from error
    return target


def check_writable(program: Program, path: PathLike) -> None:
    """Raise FormatError where the format of a file holds one graph, and the program has several."""
    if Path(path).suffix.lower() != _SAFE:
        check_whole(program, Path(path))


def read_weights(path: PathLike) -> dict[str, torch.Tensor]:
    """Read a state dict from a file, on the CPU; nothing in the file is run.

    Args:
        path: a .safetensors file, or a .pt, .pth or .bin file with a pickled state dict, which is
            read with `weights_only=True`.

    Returns:
        The tensors by key.

    Raises:
        FormatError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    source = Path(path)
    content: object = read_content(source)
    if not isinstance(content, Mapping):
        raise FormatError(
            f"{source}: this holds a {type(content).__name__}, not a state dict; save "
            "`model.state_dict()`"
        )
    state = dict(cast("Mapping[Any, Any]", content))
    others = [key for key, x in state.items() if not isinstance(x, torch.Tensor)]
    if others or not state:
        what = f"{others[0]!r} is a {type(state[others[0]]).__name__}" if others else "it is empty"
        raise FormatError(
            f"{source}: a state dict has tensors only, but here {what}; save `model.state_dict()`"
        )
    return {str(key): tensor for key, tensor in state.items()}


def read_content(source: Path, *, also: Sequence[Any] = ()) -> Any:
    """Read what a file of tensors holds, on the CPU; nothing in the file is run.

    A pickle may name what is in `also` beside torch's own, see `torch.serialization.safe_globals`.
    """
    suffix = source.suffix.lower()
    if suffix not in (_SAFE, *PICKLED):
        known = ", ".join((_SAFE, *PICKLED))
        raise FormatError(f"{source}: tensors are read from {known} files; save them as one")
    with read_safely(source, partial(_damage, suffix)):
        check_is_file(source, suffix)
        if suffix == _SAFE:
            return load_file(source)  # it checks the header's size itself, to the same limit
        with source.open("rb") as file:
            if file.read(2) == b"PK":
                open_archive(file).close()
        return unpickle(source, also)


def _damage(suffix: str, error: Exception) -> str:
    return (
        f"this {suffix} file is damaged or holds other things than tensors, and nothing in it was "
        f"run ({type(error).__name__}); save `model.state_dict()` again"
    )
