"""torch.export's .pt2 files, read without running what is in them.

`torch.export.load` unpickles parts of such a file and evaluates others as Python. Here every part
is checked, pickles are read with `weights_only=True`, and torch is handed a copy that was written
anew from what was found.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fxprune.errors import FormatError
from fxprune.pt2_document import checked_document, checked_payloads
from fxprune.quiet import quiet_export
from fxprune.reading import check_is_file, open_archive, reading, unpickle
from fxprune.writing import PathLike

__all__ = ["load_pt2"]

_SAMPLES, _MODELS = "data/sample_inputs/", "models/"
_PAYLOADS = ("data/weights/", "data/constants/")
_CONFIGS = ("_weights_config.json", "_constants_config.json")
_SETTINGS = ("archive_format", "archive_version", "byteorder", ".data/version")


def load_pt2(path: PathLike) -> ExportedProgram:
    """Read a .pt2 that torch.export.save wrote; nothing in the file is run, whoever made it.

    The whole file is read into memory. A graph in it can call only operators of torch's that
    compute.

    Args:
        path: a .pt2 file of this torch's format.

    Returns:
        What `torch.export.load` gives, to be captured or run.

    Raises:
        FormatError: the file is missing, damaged, or holds what torch would have to run.

    Example:
        >>> import fxprune, tempfile
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = fxprune.export(program, Path(folder, "net.pt2"))
        ...     print(fxprune.capture(load_pt2(path)).inputs)
        input: float32[batch, 3]
    """
    source = Path(path)
    with reading(source, _damage):
        check_is_file(source, ".pt2")
        return _loaded(source)


def _damage(error: Exception) -> str:
    return (
        "this .pt2 file is damaged, or of another version of torch; nothing in it was run "
        f"({type(error).__name__}: {str(error)[:100]!a})"
    )


def _loaded(source: Path) -> ExportedProgram:
    with source.open("rb") as file, open_archive(file) as archive:
        infos = archive.infolist()
        written = _rewritten({i.filename.partition("/")[2]: archive.read(i) for i in infos})
    with quiet_export(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(written)


def _rewritten(members: Mapping[str, bytes]) -> io.BytesIO:
    """Return a .pt2 of one model, made of what was checked."""
    models = [name for name in members if name.startswith(_MODELS)]
    if models != ["models/model.json"]:
        raise FormatError("this file does not hold one graph, as torch.export.save writes it")
    if members.get("byteorder", b"little") != b"little":
        raise FormatError("its numbers are written from their other end")
    parts = {name: members[name] for name in _SETTINGS if name in members}
    parts[models[0]] = checked_document(members[models[0]], models[0])
    samples = f"{_SAMPLES}model.pt"
    # What an old file has no sample for, torch takes an empty member for.
    sample = members.get(samples, b"")
    parts[samples] = _repickled(sample, samples) if sample else b""
    for folder, config in zip(_PAYLOADS, _CONFIGS, strict=True):
        parts |= _payloads(members, folder, f"{folder}model{config}")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in parts.items():
            archive.writestr(f"archive/{name}", raw)
    stream.seek(0)
    return stream


def _payloads(members: Mapping[str, bytes], folder: str, config: str) -> dict[str, bytes]:
    """Return the table of tensors in a folder, and the tensors that it names."""
    if config not in members:
        raise FormatError(f"{config} is missing; export the model again with this torch")
    found = {config: members[config]}
    for name, entry in checked_payloads(members[config], config).items():
        path = entry.get("path_name")
        if not isinstance(path, str) or not path.startswith(("weight_", "tensor_")):
            raise FormatError(f"{config}: {name[:60]!a} is no tensor, and torch would unpickle it")
        member = f"{folder}{path}"
        if member not in members:
            raise FormatError(f"{config}: {name[:60]!a} has no member {path[:60]!a}")
        pickled = entry.get("use_pickle") is not False
        if not pickled:
            _check_size(entry.get("tensor_meta"), len(members[member]), f"{config}: {name[:60]!a}")
        if member not in found:
            found[member] = _repickled(members[member], member) if pickled else members[member]
    return found


def _check_size(meta: Any, size: int, where: str) -> None:
    """Check that a tensor has no more entries than bytes: torch would make room for them."""
    sizes = [entry.get("as_int") for entry in meta["sizes"]]
    if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) > size:
        raise FormatError(f"{where} has the shape {str(sizes)[:60]} in {size} bytes")


def _repickled(raw: bytes, where: str) -> bytes:
    """Read a pickle of tensors without running it, and write it anew."""
    try:
        found = unpickle(io.BytesIO(raw))
    except Exception as error:  # a damaged pickle raises many kinds
        raise FormatError(
            f"{where}: this pickle holds other things than tensors and plain values, and nothing "
            f"in it was run ({type(error).__name__})"
        ) from error
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()
