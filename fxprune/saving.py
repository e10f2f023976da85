"""All of a Program in one safetensors file, which is read without running anything in it.

The tensors are the file's tensors, each piece of memory once. The rest, graphs included, is a JSON
document in the file's metadata.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from fxprune.checker import check_invariants
from fxprune.errors import FormatError
from fxprune.file_sinks import write_tensor_file
from fxprune.program import Program, check_program
from fxprune.reading import MOST_HEADER, check_is_file, header_size, reading
from fxprune.regional import check_whole
from fxprune.saved_document import parse_document, write_document
from fxprune.saved_programs import decode_program, encode_program
from fxprune.writing import PathLike, replacing

__all__ = ["load", "save", "write_fxp"]

_KEY = "fxprune"


def save(program: Program, path: PathLike) -> Path:
    """Write a Program as one file, to be read by `load`.

    The file is a safetensors file: its tensors are those of the Program, each piece of memory once,
    and its metadata holds the graphs, the inputs, the tree and what the rules did, as JSON.

    Args:
        program: dense, masked or finalized; not changed.
        path: the file to write, by custom `net.fxp`; an earlier one is replaced.

    Returns:
        The path.

    Raises:
        FormatError: the Program holds what such a file cannot, or it cannot be written there; an
            earlier file is untouched.
        PassTypeError: it is no Program.

    Example:
        >>> import fxprune, tempfile, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(program, Path(folder, "net.fxp")))
        >>> print(again.inputs, list(again.state_dict()))
        input: float32[batch, 3] ['weight', 'bias']
    """
    check_program(program, "save")
    target = Path(path)
    check_whole(program, target)
    with replacing(target) as temporary:
        try:
            write_fxp(program, temporary)
        except FormatError as error:
            raise FormatError(f"{target}: {error}") from error
    return target


def write_fxp(program: Program, path: Path) -> None:
    """Write a Program to a file that nobody else reads yet; see `save`."""
    saved, tensors = encode_program(program)
    text = write_document(saved)
    if len(text) > MOST_HEADER // 2:  # the header escapes its quotes
        raise FormatError(f"the graphs take {len(text):,} bytes, more than a .fxp can hold")
    # One key alone: safetensors writes several in any order.
    write_tensor_file(tensors, path, {_KEY: text})


def load(path: PathLike) -> Program:
    """Read a Program that `save` wrote; nothing in the file is run, whoever made it.

    A file can name only operators of torch's that compute, and classes that are already imported.

    Args:
        path: a .fxp file.

    Returns:
        The Program, on the CPU, in the mode that it was saved in.

    Raises:
        FormatError: the file is missing, damaged, or holds what no Program has; says where.
    """
    source = Path(path)
    with reading(source, _damage):
        check_is_file(source, ".fxp")
        return _loaded(source)


def _damage(error: Exception) -> str:
    return f"this .fxp file is damaged, and nothing in it was run: {str(error)[:200]!a}"


def _loaded(source: Path) -> Program:
    with source.open("rb") as file:
        header_size(file)
    with safe_open(source, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        if _KEY not in metadata:
            raise FormatError(
                "this safetensors file holds no Program; write one with fxprune.save, or give the "
                "file as weights"
            )
        saved = parse_document(metadata[_KEY])
        # Copies: the tensors of an open file are one piece of memory, which the disk may change.
        tensors: dict[str, Any] = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    program = decode_program(saved, tensors)
    check_invariants(program, "load")
    return program
