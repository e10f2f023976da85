"""A Program as readable Python source that needs torch alone, and its weights beside it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch.fx.node import map_aggregate

from fxprune.errors import FormatError
from fxprune.exporting import write_tensors
from fxprune.program import BOTH, Program
from fxprune.recipe_errors import plain
from fxprune.source_forward import body_lines
from fxprune.source_tree import tree_lines
from fxprune.source_values import as_source, is_plain, read_text
from fxprune.writing import PathLike, replacing_files, write_text

__all__ = ["source_of", "write_source"]

_TAKEN = frozenset({"F", "Path", "load", "math", "nn", "torch"})

_HEAD = '''"""{kind}, written by fxprune: plain torch. `load()` reads the weights in {weights}."""

from __future__ import annotations

{imports}from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def load(path: Any = None) -> {name}:
    """Return the model with its weights; by default those beside this file."""
    from safetensors.torch import load_file

    model = {name}()
    state = load_file(Path(__file__).with_name({weights!r}) if path is None else path)
    for key in [key for key in state if key not in model.state_dict()]:
        model.get_buffer(key).data.copy_(state.pop(key))
    model.load_state_dict(state)
    return model


def _device(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
'''


def write_source(program: Program, path: PathLike) -> Path:
    r"""Write a Program as a Python file, and its weights as a .safetensors file of the same stem.

    Importing the file needs torch alone. It defines one class, with the Program's parameters and
    buffers under their names and its graph as straight-line code, and a function `load` that
    returns the model with its weights. Outputs equal the Program's bit for bit, in both modes;
    named tuples become tuples, and classes of other libraries dicts.

    Args:
        program: not changed.
        path: the .py file; it and the weights are replaced together, or neither is.

    Returns:
        The path.

    Raises:
        FormatError: a part of the Program has no such source, or the files cannot be written.

    Example:
        >>> import fxprune, tempfile, torch
        >>> program = fxprune.capture(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_source(program, Path(folder, "net.py"))
        ...     lines = path.read_text().splitlines()
        >>> print(*lines[-3:], sep="\n")
            def forward(self, input: Any) -> Any:
                linear = F.linear(input, self.weight, self.bias)
                return linear
    """
    target = Path(path)
    if not is_plain(target.stem):
        raise FormatError(f"{target}: {target.stem!r} is no name for a Python module")
    weights = f"{target.stem}.safetensors"
    try:
        text = source_of(program, weights)
    except FormatError as error:
        raise FormatError(f"{target}: {error}") from error
    with replacing_files(target.parent) as folder:
        write_tensors(_tensors(program), folder / weights)
        write_text(folder / target.name, text)
    return target


def source_of(program: Program, weights: str) -> str:
    """Return a Program's source.

    Args:
        program: not changed.
        weights: the name of the weights file that the source reads.

    Raises:
        FormatError: a part of the Program has no source that needs torch alone.
    """
    kind = program.captured.kind
    name = kind if is_plain(kind) and kind not in _TAKEN else "Net"
    lines = [f"class {name}(nn.Module):"]
    lines += [f"    # takes {plain(str(leaf))}" for leaf in program.inputs.inputs]
    lines += ["", "    def __init__(self) -> None:", "        super().__init__()"]
    lines += [f"        {line}" for line in tree_lines(program)]
    lines += _train(program)
    for mode in program.graphs:
        function = "forward" if mode == BOTH else f"_forward_{mode}"
        lines += ["", f"    def {function}{_signature(program)} -> Any:"]
        body = "\n".join(body_lines(program, mode)).lstrip("\n").split("\n")
        lines += [f"        {line}".rstrip() for line in body]
    if BOTH not in program.graphs:
        lines += _choice(program)
    text = "\n".join(lines)
    imports = "import math\n" if "math." in text else ""
    title = re.sub(r"\W", "_", kind)
    head = _HEAD.format(kind=title, imports=imports, name=name, weights=weights)
    return f"{head}\n\n{text}\n"


def _tensors(program: Program) -> dict[str, torch.Tensor]:
    """Return the state dict, and the buffers that it leaves out."""
    return {**dict(program.named_buffers(remove_duplicate=False)), **program.state_dict()}


def _signature(program: Program) -> str:
    """Return the arguments of forward with their defaults, in brackets."""
    parts: list[inspect.Parameter] = []
    for parameter in program.inputs.signature.parameters.values():
        default: Any = parameter.default
        if default is not parameter.empty:
            default = map_aggregate(default, as_source)
        kind: Any = parameter.empty if not parts else Any
        parts.append(parameter.replace(annotation=kind, default=default))
    return str(inspect.Signature(parts))


def _train(program: Program) -> list[str]:
    """Return a `train` that sets the flags as the source's own did."""
    frozen = {
        mode: {name: flag for name, flag in flags.items() if flag is not mode}
        for mode, flags in program.captured.frozen.items()
    }
    if not any(frozen.values()):
        return []
    return [
        "",
        "    def train(self, mode: bool = True) -> Any:",
        "        super().train(mode)",
        f"        frozen = {frozen!r}",
        "        for name, flag in frozen[bool(mode)].items():",
        "            self.get_submodule(name).training = flag",
        "        return self",
    ]


def _choice(program: Program) -> list[str]:
    """Return a `forward` that runs the graph that the training flags choose."""
    lines = ["", f"    def forward{_signature(program)} -> Any:"]
    names = list(program.captured.deciders)
    if len(names) == 1:
        train = read_text(f"{names[0]}.training".lstrip("."), program)
    else:
        train = "all(flags)"
        lines += [
            f"        flags = [self.get_submodule(name).training for name in {names!r}]",
            "        if any(flags) and not all(flags):",
            f'            raise RuntimeError("set the training flags of {len(names)} parts alike")',
        ]
    parameters = list(program.inputs.signature.parameters.values())[1:]
    keyed = inspect.Parameter.KEYWORD_ONLY
    given = ", ".join(f"{p.name}={p.name}" if p.kind is keyed else p.name for p in parameters)
    return [
        *lines,
        f"        run = self._forward_train if {train} else self._forward_eval",
        f"        return run({given})",
    ]
